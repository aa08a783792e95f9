"""Ranks, as launchers tell them."""

from __future__ import annotations

import pytest

from ipyfleet_engine.ranks import Rank, find_rank


@pytest.mark.parametrize(
    ("environ", "rank"),
    [
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"}, Rank(1, 4)),
        (
            {
                "OMPI_COMM_WORLD_RANK": "1",
                "OMPI_COMM_WORLD_SIZE": "4",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
            },
            Rank(1, 4, 2),
        ),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, Rank(0, 1)),
        ({"SLURM_PROCID": "7", "SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4"}, Rank(7, 8, 4)),
        ({"MV2_COMM_WORLD_RANK": "2", "MV2_COMM_WORLD_SIZE": "3"}, Rank(2, 3)),
    ],
)
def test_launchers(environ: dict[str, str], rank: Rank) -> None:
    """Each of the known ones is understood."""
    assert find_rank(environ) == rank


def test_mpi_goes_before_slurm() -> None:
    """Under mpiexec in a Slurm job, all processes may be one Slurm task."""
    slurm = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
    assert find_rank(slurm | {"PMI_RANK": "3", "PMI_SIZE": "4"}) == Rank(3, 4)


@pytest.mark.parametrize("environ", [{}, {"PMI_RANK": "1"}, {"PMI_RANK": "x", "PMI_SIZE": "2"}])
def test_no_launcher(environ: dict[str, str]) -> None:
    """Nothing, or nothing of use, is None."""
    assert find_rank(environ) is None
