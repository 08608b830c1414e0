"""The code that pages show: what a block is, and which words of a shell block are a command.

A block is fenced and says its language, or is indented by four spaces and begins like Python or like a command.
A fenced block with a title is a file that the commands after it read.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EXECUTED = [ROOT / "README.md", DOCS / "index.md", *sorted((DOCS / "guide").glob("*.md"))]
EXECUTED += [*sorted((DOCS / "extending").glob("*.md")), DOCS / "adding-a-family.md"]
"""Pages whose code is run, in order and in one folder a page. On the others stand the commands by which the numbers
beside them were measured, on models and data that a reader has to have: of these every option is checked."""
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "AGENTS.md", *sorted(DOCS.rglob("*.md"))]
SHOWN = ("text", "yaml", "json", "html")
PYTHON_BEGINS = ("import ", "from ")
FENCE = re.compile(r"(\s*)```+\s*(\w*)(?:\s+title=\"([^\"]+)\")?\s*$")


@dataclass(frozen=True)
class Block:
    """One block of code.

    Attributes:
        line: 1-based, of its first line of code.
        language: `sh`, `python`, one of `SHOWN`, or empty where it cannot be told.
        title: the file that it is; empty where it is none.
    """

    page: Path
    line: int
    language: str
    title: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """Every block of a page, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        begin = number + 1
        if fence := FENCE.match(lines[number]):
            indent, language, title = fence[1], fence[2], fence[3] or ""
            end = next(i for i in range(begin, len(lines)) if lines[i].strip().startswith("```"))
            code = [line.removeprefix(indent) for line in lines[begin:end]]
            yield Block(page, begin + 1, language, title, "\n".join(code) + "\n")
            number = end + 1
        elif lines[number].startswith("    ") and (number == 0 or not lines[number - 1].strip()):
            end = begin
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            code = [line[4:] for line in lines[number:end]]
            yield Block(page, number + 1, _language(code[0]), "", "\n".join(code).rstrip() + "\n")
            number = end
        else:
            number = begin


def _language(first: str) -> str:
    """Of an indented block: Python by its import, else a command."""
    return "python" if first.startswith(PYTHON_BEGINS) else "sh"


def commands(block: Block) -> list[list[str]]:
    """The words of every command of a shell block; comments, redirections and assignments before it are left out.

    Raises:
        ValueError: a quotation is not closed.
    """
    found: list[list[str]] = []
    pending = ""
    for line in block.text.splitlines():
        pending += line + "\n"
        if line.rstrip().endswith("\\"):
            pending = pending.rstrip()[:-1] + " "
            continue
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:
            continue
        pending = ""
        while words and re.fullmatch(r"\w+=\S*", words[0]):
            words = words[1:]
        ends = [index for index, word in enumerate(words) if word in ("<", ">", "|", "&", "&&")]
        if words:
            found.append(words[: ends[0]] if ends else words)
    if pending:
        raise ValueError(f"{block.place}: a quotation is not closed")
    return found
