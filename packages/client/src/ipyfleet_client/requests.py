"""Requests to the hub and to engines, until they are answered.

What lives here: `Pending`, one request, and `Requests`, all that are open. What must not: sockets,
waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import msgspec

from ipyfleet_client.link import Answer
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import encode
from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.errors import (
    KernelError,
    ProtocolError,
    collect_exceptions,
    error_from_info,
)


class Pending(Future[Any]):
    """The answer to a request to the hub, or to engines, once it is here."""

    take: Callable[[bytes, Sequence[Frame]], bool] | None = None
    """Takes each of several replies, in the receiving thread; true for the last."""

    defer: Callable[[Callable[[], None]], None] | None = None
    """Calls what users want to be called, elsewhere than in the receiving thread."""

    def __init__(
        self,
        question: m.Question | None = None,
        action: m.ControlAction | None = None,
        engines: Iterable[int] = (),
    ) -> None:
        super().__init__()
        self.question = question
        self.action = action
        self.waiting = set(engines)
        self.errors: list[BaseException] = []
        self.contents: dict[int, bytes] = {}

    def _invoke_callbacks(self) -> None:
        call: Callable[[], None] = super()._invoke_callbacks  # type: ignore[misc]
        if self.defer is not None and self._done_callbacks:  # type: ignore[attr-defined]
            self.defer(call)
        else:
            call()

    def message(self, number: int) -> m.Message:
        """Return the message that asks it, of the engines that have not answered."""
        if self.question is not None:
            return m.Request(number, self.question)
        assert self.action is not None
        return m.Control(number, list(self.waiting), self.action)

    @property
    def may_be_repeated(self) -> bool:
        """Whether it does no harm to ask twice."""
        return not isinstance(self.action, m.SendSignal | m.StopEngine)


class Requests:
    """The open requests of a client.

    Opened by any thread; answered by the one that receives.
    """

    def __init__(self) -> None:
        self._open: dict[int, Pending] = {}
        self._doubtful: list[Pending] = []

    def open(self, number: int, pending: Pending) -> None:
        """Note that a request is asked."""
        self._open[number] = pending

    def take(self, answer: Answer) -> None:
        """Take an answer; what waits for it goes on when it was the last."""
        pending = self._open.get(answer.request)
        if pending is None:
            return
        error: Exception | None = None
        if answer.error is not None:
            error = error_from_info(answer.error)
        if answer.engine < 0 and not pending.waiting:
            if error is None and pending.take is not None:
                try:
                    if not pending.take(answer.content, answer.frames):
                        return
                except (msgspec.MsgspecError, LookupError, TypeError) as failure:
                    error = ProtocolError(f"an answer that makes no sense: {failure!r}")
            self._open.pop(answer.request, None)
            _resolve(pending, (answer.content, answer.frames), error)
            return
        pending.waiting.discard(answer.engine)
        if error is not None:
            pending.errors.append(error)
        else:
            pending.contents[answer.engine] = answer.content
        if not pending.waiting:
            self._open.pop(answer.request, None)
            _resolve(pending, None, _join_errors(pending.errors))

    def ask_again(self) -> Iterator[bytes]:
        """Yield the headers that ask all again of a controller that has lost its memory.

        Those that may not be asked twice are left for `fail_doubtful`.
        """
        for number, pending in list(self._open.items()):
            if pending.may_be_repeated:
                yield encode(pending.message(number))
            else:
                self._open.pop(number, None)
                self._doubtful.append(pending)

    def fail_doubtful(self) -> None:
        """End those that were not asked again. Runs users' callbacks: hold no lock."""
        while self._doubtful:
            text = "the controller died before it answered; whether this was done is not known"
            _resolve(self._doubtful.pop(), None, KernelError(text))

    def fail(self, error: KernelError) -> None:
        """End all with an error."""
        for number in list(self._open):
            pending = self._open.pop(number, None)
            if pending is not None:
                _resolve(pending, None, error)


def _resolve(pending: Pending, value: Any, error: BaseException | None) -> None:
    if pending.done():
        return
    if error is not None:
        pending.set_exception(error)
    else:
        pending.set_result(value)


def _join_errors(errors: list[BaseException]) -> BaseException | None:
    if len(errors) < 2:
        return errors[0] if errors else None
    try:
        collect_exceptions(errors, "control")
    except KernelError as error:
        return error
    return errors[0]
