"""Which of the processes of an MPI program or batch job this one is.

What lives here: `find_rank`. What must not: MPI; the launchers say it in the environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

NO_RANK = (
    "nothing in the environment tells this process's rank; start it with mpiexec or srun "
    "(Open MPI, MPICH, Intel MPI, MVAPICH and Slurm are known)"
)


class Rank(NamedTuple):
    """One process of several.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        local_size: how many of them are on this host; 0 for "not known".
    """

    rank: int
    size: int
    local_size: int = 0


_VARIABLES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE"),
)
"""Of each launcher: rank, size, processes on this host. MPI's own come first: under Slurm, mpiexec
may start several processes in one Slurm task."""


def find_rank(environ: Mapping[str, str]) -> Rank | None:
    """Return what the launcher says of this process; None if there was no launcher.

    Example:
        >>> find_rank({"PMI_RANK": "3", "PMI_SIZE": "8"})
        Rank(rank=3, size=8, local_size=0)
    """
    for rank, size, local in _VARIABLES:
        try:
            return Rank(int(environ[rank]), int(environ[size]), _number(environ.get(local, "")))
        except (KeyError, ValueError):
            continue
    return None


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0
