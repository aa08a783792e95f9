import subprocess
import sys

import pytest

CODE = """
from pathlib import Path
from ipyfleet_controller.allocation import give_back_large_blocks

def private_mib():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024

print(give_back_large_blocks())
before = private_mib()
for size in range(1, 30):
    bytes(size << 20)
kept = []
blocks = []
for number in range(100):
    blocks.append(b"x" * (1 << 20))
    kept.append(b"y" * 600)
del blocks
print(private_mib() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator is glibc's")
def test_freed_blocks_are_the_systems_again() -> None:
    """A hundred MiB that small blocks lie between are gone from the process when they are freed."""
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=60
    )
    was_set, grown_mib = done.stdout.split()
    if was_set != "True":
        pytest.skip("the allocator is not glibc's")
    assert float(grown_mib) < 20
