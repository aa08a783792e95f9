"""What a client asks the hub: records, results of whomever, resubmission.

What lives here: the part of `Client` about the hub's records. What must not: waiting for results
(`asyncresult.py`, `hubresult.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from ipyfleet_client.asyncresult import AsyncResult
from ipyfleet_client.metadata import as_datetime
from ipyfleet_client.submission import Spec
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.errors import RemoteError, collect_exceptions
from ipyfleet_protocol.ids import parse_msg_id
from ipyfleet_protocol.serialize import Packed, PackedFunction

if TYPE_CHECKING:
    from collections import deque

    from ipyfleet_client.session import Session

REQUEST_TIMEOUT_S = 60.0
"""How long a request to the hub or to engines may take."""

KNOWN_SOON_S = (0.02, 0.1)
"""When to ask again for what is not known: another client's submission may be on its way."""

_TIMES = ("submitted", "started", "completed", "received")
_BUILTIN = {kind.__name__: kind for kind in (KeyError, IndexError, ValueError)}


class HubQueries:
    """Questions about tasks."""

    session: Session
    _kept: deque[AsyncResult]
    _forgotten: int

    if TYPE_CHECKING:

        @property
        def history(self) -> list[str]:
            """As `Client.history`."""

        @property
        def outstanding(self) -> set[str]:
            """As `Client.outstanding`."""

    # -- results ------------------------------------------------------------------------------

    def get_result(
        self, indices_or_msg_ids: Any = None, block: bool | None = None, owner: bool = True
    ) -> Any:
        """Return the `AsyncResult` of tasks, whoever submitted them and whether they have ended.

        What is outstanding here is the `AsyncResult` that the call has returned; all else is an
        `AsyncHubResult`, which the controller tells of the tasks' ends.

        Args:
            indices_or_msg_ids: a msg_id, an index of the history, an `AsyncResult`, or a list of
                those; None for the latest call.
            block: wait for the value and return that.
            owner: accepted for compatibility: a result is kept as long as its `AsyncResult` is.

        Raises:
            KeyError: neither this client nor the controller knows such a task.
            IndexError: the history is not that long.
            TypeError: it is none of what it can be.
        """
        wanted = -1 if indices_or_msg_ids is None else indices_or_msg_ids
        result = wanted if isinstance(wanted, AsyncResult) else self._find_result(wanted)
        return result.get() if block else result

    def _find_result(self, wanted: Any) -> AsyncResult:
        from ipyfleet_client.hubresult import AsyncHubResult

        msg_ids = self._msg_ids(wanted)
        if not msg_ids:
            raise ValueError("get_result() needs at least one msg_id; the list is empty")
        local = self._local_result(msg_ids)
        if local is not None:
            if isinstance(wanted, str) and local._work.total > 1:
                return local.split()[local.msg_ids.index(wanted)]
            return local
        self.session.submit.flush()
        single = not isinstance(wanted, list | tuple)
        for again_s in KNOWN_SOON_S:
            result = AsyncHubResult(self, msg_ids, single=single)  # type: ignore[arg-type]
            try:
                result.wait_until_known(REQUEST_TIMEOUT_S)
            except KeyError:
                self.session.wait_until(lambda: False, again_s)
            else:
                return result
        result = AsyncHubResult(self, msg_ids, single=single)  # type: ignore[arg-type]
        result.wait_until_known(REQUEST_TIMEOUT_S)
        return result

    def _local_result(self, msg_ids: Sequence[str]) -> AsyncResult | None:
        """Return the result that all of the tasks belong to, if it is outstanding or kept here."""
        found: AsyncResult | None = None
        for msg_id in msg_ids:
            try:
                peer, seq = parse_msg_id(msg_id)
            except ValueError as error:
                raise KeyError(f"{error}; rc.history lists this client's") from None
            if peer != self.session.peer:
                return None
            owner = self._owner_of(seq)
            if owner is None or found not in (None, owner):
                return None
            found = owner
        return found

    def _owner_of(self, seq: int) -> AsyncResult | None:
        with self.session.link.lock:
            entry = self.session.link.ledger.find(seq)
        if entry is not None and entry[0].owner is not None:
            owner: AsyncResult = entry[0].owner
            return owner
        return next((kept for kept in self._kept if seq in kept._work.seqs()), None)

    def _keep(self, result: AsyncResult) -> None:
        """Keep a result reachable for which the user has no name: its wait was interrupted."""
        self._kept.append(result)

    def _msg_ids(self, jobs: Any) -> list[str]:
        """Return the msg_ids that an argument means, each once.

        Raises:
            TypeError: it is none of what it can be.
            IndexError: the history is not that long.
        """
        if isinstance(jobs, AsyncResult):
            return jobs.msg_ids
        if isinstance(jobs, str):
            return [jobs]
        if isinstance(jobs, int) and not isinstance(jobs, bool):
            history = self.history
            try:
                return [history[jobs]]
            except IndexError:
                raise IndexError(
                    f"no task {jobs} in the history: there are {len(history)}"
                ) from None
        if isinstance(jobs, Iterable) and not isinstance(jobs, bytes | Mapping):
            return list(dict.fromkeys(msg_id for job in jobs for msg_id in self._msg_ids(job)))
        raise TypeError(
            "tasks are named by msg_ids (str), indices of the history, results, or collections of "
            f"those, not by {type(jobs).__name__}"
        )

    def resubmit(self, indices_or_msg_ids: Any = None, block: bool | None = None) -> Any:
        """Submit tasks again, with the arguments that they were submitted with.

        The controller keeps the last 16 MiB of what clients have submitted; arguments in shared
        memory (256 KiB and more, on one host) are gone with their task.

        Args:
            indices_or_msg_ids: as for `get_result`; tasks of any client.
            block: wait for the value and return that.

        Returns:
            The `AsyncResult` of the new tasks, or its value.

        Raises:
            KeyError: the controller does not have the arguments of one of them (any more).
        """
        wanted = -1 if indices_or_msg_ids is None else indices_or_msg_ids
        msg_ids = self._msg_ids(wanted)
        if not msg_ids:
            raise ValueError("resubmit() needs at least one msg_id; the list is empty")
        self.session.submit.flush()
        answer, frames = self._ask_of_tasks(
            m.FetchRequests(msg_ids),
            msg_ids,
            "the controller does not have the arguments of {}: the task is not known, is too long "
            "ago, or its arguments were too large; make the call again",
        )
        single = not isinstance(wanted, list | tuple) and len(msg_ids) == 1
        results = self._submit_again({msg_id: answer[msg_id] for msg_id in msg_ids}, frames)
        result = results[0] if single else AsyncResult.join(*results)
        return result.get() if block else result

    def _submit_again(
        self, requests: Mapping[str, dict[str, Any]], frames: Sequence[Frame]
    ) -> list[AsyncResult]:
        import time

        from ipyfleet_client.pending import Work

        bodies: dict[bytes, PackedFunction] = {}
        results: list[AsyncResult] = []
        at = 0
        for msg_id, request in requests.items():
            options = msgspec.convert(request["options"], m.Options)
            function = None
            if request["function"] is not None:
                header = msgspec.convert(request["function"], m.Function)
                if request["frames"]:
                    header.frames = request["frames"]
                    body = [bytes(memoryview(f)) for f in frames[at : at + header.frames]]
                    bodies[header.digest] = PackedFunction(header, list(body))
                    at += header.frames
                function = bodies[header.digest]
            pickle, *buffers = (memoryview(f) for f in frames[at : at + request["payload"]])
            at += request["payload"]
            targets = None if request["target"] is None else [request["target"]]
            work = Work(
                1,
                method=options.method,
                name=function.function.name if function else options.method,
                submitted=time.time(),
                targets=targets,
                label=options.label,
            )
            if function is None:
                work.code = bytes(pickle).decode()
            result = AsyncResult(self, work, single=True)  # type: ignore[arg-type]
            spec = Spec(
                options.method,
                options.placement,
                None if targets or options.targets is None else tuple(options.targets),
                retries=options.retries,
                silent=options.silent,
                label=options.label,
                after=options.after,
                follow=options.follow,
                timeout_s=options.timeout_s,
                priority=options.priority,
                resources=tuple(options.resources.items()),
                resubmits=m.TaskRange(*parse_msg_id(msg_id), 1),
            )
            payload = Packed(bytes(pickle), buffers)
            self.session.submit.submit(work, spec, function, payload, targets=targets)
            results.append(result)
        return results

    # -- records ------------------------------------------------------------------------------

    def result_status(self, msg_ids: Any, status_only: bool = True) -> dict[str, Any]:
        """Tell which tasks have ended.

        Args:
            msg_ids: as for `get_result`.
            status_only: do not fetch the values.

        Returns:
            ``{"pending": [msg_id, …], "completed": [msg_id, …]}``, and unless `status_only` the
            value of each completed task under its msg_id.

        Raises:
            KeyError: a task is not known.
            CompositeError: values were asked for, and some are errors.
        """
        from ipyfleet_client.hubresult import AsyncHubResult

        wanted = self._msg_ids(msg_ids)
        self.session.submit.flush()
        records, _ = self._ask(m.FetchResults(wanted, status_only=True))
        unknown = [msg_id for msg_id in wanted if records[msg_id] is None]
        if unknown:
            raise KeyError(f"the controller knows no task {', '.join(unknown[:4])}")
        status: dict[str, Any] = {
            "pending": [i for i in wanted if records[i]["status"] is None],
            "completed": [i for i in wanted if records[i]["status"] is not None],
        }
        completed = status["completed"]
        if not status_only and completed:
            result = AsyncHubResult(self, completed, single=False)  # type: ignore[arg-type]
            values = result.get(REQUEST_TIMEOUT_S, return_exceptions=True)
            collect_exceptions(values, "result_status")
            status.update(zip(completed, values, strict=True))
        return status

    def queue_status(self, targets: Any = "all", verbose: bool = False) -> Any:
        """Return how many tasks wait at, and have ended on, each engine.

        Args:
            targets: the engines; for an int only its part is returned.
            verbose: list msg_ids instead of counting.

        Returns:
            ``{engine: {"queue": direct, "tasks": balanced, "completed": …}, …, "unassigned": …}``.
        """
        return self._queue_status(REQUEST_TIMEOUT_S, targets, verbose)

    def _queue_status(self, timeout_s: float, targets: Any = "all", verbose: bool = False) -> Any:
        if targets is None or (isinstance(targets, str) and targets == "all"):
            chosen: int | list[int] | None = None
        else:
            chosen = self.session.link.engines.choose(targets)
        asked = [chosen] if isinstance(chosen, int) else chosen
        answer, _ = self._ask(m.QueueStatus(asked, verbose), timeout_s)
        status = {_int_key(key): value for key, value in (answer or {}).items()}
        return status[chosen] if isinstance(chosen, int) else status

    def hub_history(self) -> list[str]:
        """Return the msg_ids of all tasks in the database, in the order of submission."""
        self.session.submit.flush()
        return list(self._ask(m.TaskHistory())[0] or ())

    def db_query(
        self, query: Mapping[str, Any], keys: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """Return the records of tasks that match, in the order of submission.

        Args:
            query: field to value, or to a dictionary of operators such as ``{"$gt": 5}``; all must
                hold. None means "not yet": ``{"completed": None}`` finds what is pending.
            keys: the fields to return; ``msg_id`` is always among them. None for all.

        Returns:
            Dictionaries. Times are datetimes in UTC.

        Raises:
            TypeError: the query is no dictionary, or keys are no strings.
            ValueError: there is no such field or operator.

        Example:
            >>> rc.db_query({"completed": {"$ne": None}}, keys=["engine_id"])  # doctest: +SKIP
            [{'msg_id': '…', 'engine_id': 0}]
        """
        if not isinstance(query, Mapping):
            raise TypeError(f"a query is a dictionary, not {type(query).__name__}")
        if isinstance(keys, str):
            keys = [keys]
        if keys is not None and not all(isinstance(key, str) for key in keys):
            raise TypeError("keys are names of fields (str), such as ['engine_id', 'completed']")
        self.session.submit.flush()
        encoded = msgspec.msgpack.encode(_sendable(query))
        records, _ = self._ask(m.FindRecords(encoded, None if keys is None else list(keys)))
        for record in records:
            for key in _TIMES:
                if key in record:
                    record[key] = as_datetime(record[key])
        return list(records)

    # -- forgetting ---------------------------------------------------------------------------

    def purge_local_results(self, jobs: Any = None, targets: Any = None) -> None:
        """Forget results that are kept here.

        Few are: a result lives as long as its `AsyncResult`, and those of interrupted waits.

        Args:
            jobs: as for `get_result`, or "all".
            targets: engines: what they ran.

        Raises:
            ValueError: neither was given.
            RuntimeError: one of the tasks has not ended.
        """
        msg_ids, engines = self._doomed(jobs, targets)
        outstanding = self.outstanding
        pending = outstanding if msg_ids is None else outstanding.intersection(msg_ids)
        if engines is not None:
            pending = set()
        if pending:
            raise RuntimeError(
                f"{len(pending)} of these tasks have not ended, such as {min(pending)}; wait for "
                "them, or abort them, before purging"
            )
        for result in list(self._kept):
            ids, ran_on = set(result.msg_ids), {result.engine_id} if result._single else None
            if ran_on is None:
                ran_on = set(result.engine_id)
            everything = msg_ids is None and engines is None
            if everything or ids.intersection(msg_ids or ()) or ran_on.intersection(engines or ()):
                self._kept.remove(result)

    def purge_hub_results(self, jobs: Any = None, targets: Any = None) -> None:
        """Have the hub drop records of tasks that have ended, with their results.

        Args:
            jobs: as for `get_result`, or "all" for all that have ended.
            targets: engines: what they ran.

        Raises:
            ValueError: neither was given.
            KeyError: a task is not known.
            IndexError: a task has not ended; nothing was dropped.
        """
        msg_ids, engines = self._doomed(jobs, targets)
        self.session.submit.flush()
        self._ask(m.PurgeRecords(msg_ids, engines))

    def purge_results(self, jobs: Any = None, targets: Any = None) -> None:
        """Forget results here and at the hub; see `purge_local_results`, `purge_hub_results`."""
        self.purge_local_results(jobs, targets)
        self.purge_hub_results(jobs, targets)

    def purge_everything(self) -> None:
        """Forget all results here and at the hub, and this client's history.

        Raises:
            RuntimeError: tasks are outstanding.
        """
        self.purge_results("all")
        self._forgotten = self.session.submit.next_seq

    def _doomed(self, jobs: Any, targets: Any) -> tuple[list[str] | None, list[int] | None]:
        """Return msg_ids and engines to purge; None and None for all."""
        empty = isinstance(jobs, list | tuple | set) and not jobs
        if (jobs is None or empty) and (targets is None or targets == []):
            raise ValueError(
                'say what to purge: msg_ids or results, targets=[engines], or "all" for everything'
            )
        engines = None
        if targets is not None:
            chosen = self.session.link.engines.targets(targets)
            engines = [chosen] if isinstance(chosen, int) else chosen
        if isinstance(jobs, str) and jobs == "all":
            return None, None
        return ([] if jobs is None else self._msg_ids(jobs)), engines

    # -- asking -------------------------------------------------------------------------------

    def _ask(
        self, question: m.Question, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> tuple[Any, Sequence[Frame]]:
        """Ask the hub, wait for the answer, decode it; return it with its frames."""
        try:
            content, frames = self.session.answer(self.session.request(question), timeout_s)
        except RemoteError as error:
            kind = _BUILTIN.get(error.ename)
            if kind is None:
                raise
            raise kind(error.evalue) from None
        return (msgspec.msgpack.decode(content, strict=False) if content else None), frames

    def _ask_of_tasks(
        self, question: m.Question, msg_ids: Sequence[str], complaint: str
    ) -> tuple[Any, Sequence[Frame]]:
        """As `_ask`, of what has an answer by msg_id.

        Raises:
            KeyError: there is none for some of the tasks; `complaint` says so of ``{}``.
        """
        answer, frames = self._ask(question)
        unknown = [msg_id for msg_id in msg_ids if answer[msg_id] is None]
        if unknown:
            raise KeyError(complaint.format(", ".join(unknown[:4])))
        return answer, frames


def _sendable(value: Any) -> Any:
    """Return a query that msgpack takes: datetimes as seconds since the epoch."""
    if isinstance(value, datetime):
        return value.timestamp()
    if isinstance(value, Mapping):
        return {key: _sendable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_sendable(item) for item in value]
    return value


def _int_key(key: Any) -> Any:
    return int(key) if isinstance(key, str) and key.isdigit() else key
