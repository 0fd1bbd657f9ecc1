"""The pages in docs/: one a command, with the command's own help, and links that lead somewhere.

`python -m tests.test_docs` writes the commands' help into the pages.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
COMMANDS = (
    "init",
    "import",
    "extract",
    "train",
    "evaluate",
    "detect",
    "export",
    "report",
    "runs",
    "status",
    "backbones",
    "demo",
)
PAGES = [*sorted(DOCS.glob("*.md")), *(ROOT / n for n in ("README.md", "CONTRIBUTING.md"))]
_BLOCK = re.compile(r"(<!-- help -->\n).*?(<!-- /help -->)", re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def help_of(command: str) -> str:
    """The command's help in a line width that does not depend on the terminal."""
    result = subprocess.run(
        [sys.executable, "-m", "mstemba", command, "--help"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100"},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return result.stdout.strip()


def with_help(page: str, command: str) -> str:
    """The page with the command's present help in its block."""
    block = f"```\n{help_of(command)}\n```\n"
    return _BLOCK.sub(lambda found: found[1] + block + found[2], page)


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them of its headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_holds_the_commands_present_help(command: str) -> None:
    page = (DOCS / f"{command}.md").read_text(encoding="utf-8")
    assert _BLOCK.search(page)
    assert page == with_help(page, command), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith(("http:", "https:")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.exists(), target
        if anchor:
            assert anchor in headings(file), target


def test_the_overview_links_every_page() -> None:
    linked = set(_LINK.findall((DOCS / "index.md").read_text(encoding="utf-8")))
    assert {page.name for page in DOCS.glob("*.md")} - {"index.md"} <= linked


def test_every_command_has_a_page() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "mstemba", "--help"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    listed = {line.split()[0] for line in said.split("Commands:")[1].strip().splitlines()}
    assert listed == set(COMMANDS)
    assert all((DOCS / f"{command}.md").is_file() for command in listed)


def test_options_named_in_the_pages_exist() -> None:
    known = set(re.findall(r"--[a-z][a-z-]+", "".join(help_of(command) for command in COMMANDS)))
    # Of pip, tensorboard and torchrun.
    known |= {"--version", "--no-build-isolation", "--index-url", "--logdir", "--nproc-per-node"}
    for page in DOCS.glob("*.md"):
        named = set(
            re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]\b(?!-)", page.read_text(encoding="utf-8"))
        )
        assert named <= known, page.name


def main() -> None:
    for command in COMMANDS:
        page = DOCS / f"{command}.md"
        page.write_text(with_help(page.read_text(encoding="utf-8"), command), encoding="utf-8")


if __name__ == "__main__":
    main()
