"""Values and metadata of tasks by their msg_ids, as mappings.

What lives here: what ``rc.results`` and ``rc.metadata`` are. What must not: anything kept; each
look-up is a `Client.get_result`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipyfleet_client.asyncresult import AsyncResult
    from ipyfleet_client.client import Client


class TaskMap(Mapping[str, Any]):
    """Something of each task, by msg_id; looked up when asked for.

    Iterates over this client's own tasks; the msg_id of any task can be looked up. Raises KeyError
    for what neither this client nor the controller knows.
    """

    def __init__(
        self, client: Client, what: str, read: Callable[[AsyncResult], Any], *, ended: bool
    ) -> None:
        self._client = client
        self._what = what
        self._read = read
        self._ended = ended

    def __getitem__(self, msg_id: str) -> Any:
        if not isinstance(msg_id, str):
            raise KeyError(msg_id)
        result = self._client.get_result(msg_id)
        if self._ended and not result.ready():
            raise KeyError(f"{msg_id} has not ended; rc.get_result(msg_id).get() waits for it")
        return self._read(result)

    def __iter__(self) -> Iterator[str]:
        pending = self._client.outstanding if self._ended else frozenset[str]()
        return (msg_id for msg_id in self._client.history if msg_id not in pending)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, msg_id: object) -> bool:
        return isinstance(msg_id, str) and msg_id in set(self)

    def __repr__(self) -> str:
        return f"<{self._what} of {len(self)} tasks>"


def results_of(client: Client) -> TaskMap:
    """The values of tasks that have ended; those that failed raise their error."""
    return TaskMap(client, "values", lambda result: result.get(), ended=True)


def metadata_of_tasks(client: Client) -> TaskMap:
    """The `Metadata` of tasks."""
    return TaskMap(client, "metadata", lambda result: result.metadata, ended=False)
