"""The code on the pages is run as a reader would run it, against real clusters."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from ipyfleet_testing.outputs import in_engine_order

REPOSITORY = Path(__file__).resolve().parents[1]
EXECUTED_PAGES = sorted(
    str(page.relative_to(REPOSITORY))
    for page in [
        REPOSITORY / "README.md",
        *(REPOSITORY / "docs").glob("*.md"),
        *(REPOSITORY / "packages").glob("*/README.md"),
    ]
    if "```python\n" in page.read_text()
)

RUNNER = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
for number, code in enumerate(json.loads(sys.stdin.read())):
    print(f"--- block {number}", flush=True)
    shell.run_cell(code).raise_error()
"""

CLUSTER_LOG = re.compile(r"^(Starting|Stopping) .*\n", re.MULTILINE)
"""A `Cluster` in IPython says what it starts; pages leave that out."""


class Block(NamedTuple):
    """A block of code: the line where it starts, the code, what it must print (None: anything)."""

    line: int
    code: str
    expected: str | None


def read_blocks(text: str) -> list[Block]:
    """Return the code blocks of a page, each with the text block that follows it directly."""
    pattern = re.compile(r"```(?:python|ipython)\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)
    return [
        Block(text.count("\n", 0, match.start()) + 1, match[1], match[2])
        for match in pattern.finditer(text)
    ]


def test_pages_are_found() -> None:
    """The README and the tutorial are among the pages that are run."""
    assert {"README.md", "docs/tutorial.md"} <= set(EXECUTED_PAGES)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("page", EXECUTED_PAGES)
def test_a_page_does_what_it_says(page: str, tmp_path: Path) -> None:
    """Every block of the page runs in order in one IPython, and prints what stands below it."""
    blocks = read_blocks((REPOSITORY / page).read_text())
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps([block.code for block in blocks]),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=150,
    )
    printed = re.split(r"--- block \d+\n", done.stdout)[1:]
    assert done.returncode == 0, f"block {len(printed) - 1} failed:\n{done.stdout}{done.stderr}"
    for block, output in zip(blocks, printed, strict=True):
        if block.expected is not None:
            printed_by_block = in_engine_order(CLUSTER_LOG.sub("", output).strip())
            assert printed_by_block == in_engine_order(block.expected.strip()), (
                f"{page}:{block.line}"
            )


LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)\s]*)?\)")


@pytest.mark.parametrize(
    "page",
    sorted(
        str(page.relative_to(REPOSITORY))
        for pattern in ("*.md", "docs/**/*.md", "packages/*/*.md", "benchmarks/*.md")
        for page in REPOSITORY.glob(pattern)
    ),
)
def test_links_lead_somewhere(page: str) -> None:
    """Every link of a page to a file of the repository has a file at its end."""
    folder = (REPOSITORY / page).parent
    targets = LINK.findall((REPOSITORY / page).read_text())
    assert not [target for target in targets if not (folder / target).exists()]
