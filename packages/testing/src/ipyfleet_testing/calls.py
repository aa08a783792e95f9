"""What code costs in calls of Python functions, which no other load of the machine changes.

What lives here: `PythonCalls`. What must not: bounds; those are the tests'.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, Self


class PythonCalls(list[str]):
    """The names of the Python functions that a thread calls while this is entered.

    `start` and `stop` are for calls between which a test does not stay in one place.
    """

    def start(self) -> None:
        """Note what this thread calls from now on."""
        sys.setprofile(self._note)

    def stop(self) -> None:
        """Note nothing more."""
        sys.setprofile(None)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _note(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename != __file__:
            self.append(frame.f_code.co_name)


__all__ = ["PythonCalls"]
