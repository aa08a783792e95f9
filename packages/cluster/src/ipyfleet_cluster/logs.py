"""Where a `Cluster` logs when nobody says where."""

from __future__ import annotations

import logging
import sys

_NAME = "ipyfleet.cluster"


class _Stdout(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to whatever `sys.stdout` is at the moment: in a notebook, that of the running cell."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> object:
        """The current stdout."""
        return sys.stdout


def cluster_log() -> logging.Logger:
    """Return the logger of clusters; inside an IPython session it prints what it is told at
    INFO.
    """
    log = logging.getLogger(_NAME)
    if _is_in_ipython() and not log.handlers:
        log.addHandler(_Stdout())
        log.setLevel(logging.INFO)
        log.propagate = False
    return log


def _is_in_ipython() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None
