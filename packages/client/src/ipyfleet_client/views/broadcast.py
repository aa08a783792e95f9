"""A view for sending the same to many engines.

What lives here: `BroadcastView`.
"""

from __future__ import annotations

from typing import Any

from ipyfleet_client.views.base import Flag
from ipyfleet_client.views.direct import DirectView


class BroadcastView(DirectView):
    """Engines that get the same calls; as a `DirectView`, under the name that scripts use.

    A call on several engines leaves the client as one message whichever view makes it, and is
    copied where the engines are. So what this view adds is only its name and the flag, and
    everything that a `DirectView` does works alike: `map`, `run`, labels, records in the database.

    Attributes:
        is_coalescing: accepted for compatibility: answers travel together when they come together.
            Results are in the order of the targets either way, and ``ar.engine_id`` says whose each
            is.
    """

    flag_names = DirectView.flag_names | {"is_coalescing"}

    is_coalescing = Flag[bool](False)

    def _check_flag(self, name: str, value: Any) -> Any:
        return bool(value) if name == "is_coalescing" else super()._check_flag(name, value)
