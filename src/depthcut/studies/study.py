"""What a study leaves: `study.json` with everything, `study.md` to read, one CSV a table, and a page."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from depthcut.evaluation.compare import software
from depthcut.process.workspace import STUDY, workspace
from depthcut.report.page import FIGURES, write_page
from depthcut.studies.figures import Figure
from depthcut.types import SCHEMA_VERSION, InputError, Provenance, Record, TextDescription

SETTINGS = "settings.json"

Cell = str | int | float | None


class Table(Record):
    """Rows under named columns; a column's name ends with the unit of measure where there is one.

    Attributes:
        name: of its CSV file.
        listed: whether people read it in `study.md`; else it is data for programs.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    listed: bool = True

    @classmethod
    def of(cls, name: str, title: str, rows: Sequence[Mapping[str, Cell]]) -> Self:
        """A table of rows with a cell for every column, at least one."""
        return cls(name=name, title=title, columns=tuple(rows[0]), rows=tuple(tuple(row.values()) for row in rows))

    def to_csv(self) -> str:
        """All digits; what is unknown is empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return text.getvalue()

    @property
    def is_numeric(self) -> list[bool]:
        """By column, whether it holds numbers."""
        return [any(isinstance(row[place], int | float) for row in self.rows) for place in range(len(self.columns))]

    def texts(self) -> list[tuple[str, ...]]:
        """The rows with four significant digits."""
        return [tuple(_text(cell) for cell in row) for row in self.rows]

    def to_markdown(self) -> str:
        """Four significant digits; numbers are aligned to the right."""
        lines = [self.columns, tuple("---:" if is_number else "---" for is_number in self.is_numeric)]
        lines += self.texts()
        return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _text(cell: Cell) -> str:
    if cell is None:
        return "–"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


class StudyData(Record):
    """What the figures of `study.html` draw, by name."""

    figures: dict[str, Figure]


class Study(Record):
    """What one study found: `study.json`.

    Attributes:
        command: makes it again.
        settings: all options, the defaults too.
        texts: what units were chosen by and models measured on, by use.
        findings: what the numbers say, a sentence each.
    """

    schema_version: int = SCHEMA_VERSION
    study: str
    command: str
    settings: dict[str, Any]
    model: Provenance
    texts: dict[str, TextDescription]
    software: dict[str, str]
    findings: tuple[str, ...]
    tables: tuple[Table, ...]

    @property
    def title(self) -> str:
        return f"{self.study.capitalize()}: {self.model.name}, {self.model.num_blocks} blocks, {self.model.dtype}"

    def made_with(self) -> dict[str, str]:
        """The texts by use, and the software."""
        texts = {
            use: f"{text.source} ({text.detail}), {text.num_samples} × {text.length} tokens"
            for use, text in self.texts.items()
        }
        return texts | {"software": ", ".join(f"{name} {version}" for name, version in self.software.items())}

    def to_markdown(self) -> str:
        """The study for people who read text: all but the figures."""
        parts = [
            f"# {self.title}",
            f"    {self.command}",
            "\n".join(f"- {finding}" for finding in self.findings),
            *(f"## {table.title}\n\n{table.to_markdown()}" for table in self.tables if table.listed),
            "## Made with",
            "\n".join(f"- {term}: {text}" for term, text in self.made_with().items()),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"


@contextmanager
def study_folder(output: Path, settings: Mapping[str, Any], *, overwrite: bool, resume: bool) -> Iterator[Path]:
    """The folder that a study works in; it becomes the output when the study is whole.

    Raises:
        InputError: the output cannot be written, or an unfinished study there was begun with other settings.
    """
    with workspace(output, overwrite=overwrite, resume=resume) as folder:
        file = folder / SETTINGS
        text = json.dumps(settings, indent=2) + "\n"
        if file.is_file() and file.read_text(encoding="utf-8") != text:
            raise InputError(
                f"the unfinished study in {folder} was begun with other options (see its {SETTINGS}); give the same "
                "options to resume it, or --overwrite to begin anew"
            )
        file.write_text(text, encoding="utf-8")
        yield folder


def write_study(
    folder: Path,
    study: str,
    *,
    command: str,
    settings: Mapping[str, Any],
    model: Provenance,
    texts: Mapping[str, TextDescription],
    findings: Sequence[str],
    tables: Sequence[Table],
    figures: Mapping[str, Figure],
) -> Study:
    """Writes all files of a study."""
    for table in tables:
        assert len(set(table.columns)) == len(table.columns), f"two columns of {table.name} have one name"
    found = Study(
        study=study,
        command=command,
        settings=dict(settings),
        model=model,
        texts=dict(texts),
        software=software(),
        findings=tuple(findings),
        tables=tuple(tables),
    )
    for table in tables:
        (folder / f"{table.name}.csv").write_text(table.to_csv(), encoding="utf-8")
    (folder / "study.md").write_text(found.to_markdown(), encoding="utf-8")
    write_page(
        folder / "study.html",
        "study.html.j2",
        StudyData(figures=dict(figures)),
        (*FIGURES, "windows", "study"),
        study=found,
        figures=figures,
    )
    found.write(folder / STUDY)
    return found
