"""The ``ipcluster`` command: one file per subcommand, `base` for what they share."""

from __future__ import annotations

from .main import IPCluster, main

__all__ = ["IPCluster", "main"]
