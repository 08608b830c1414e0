"""Measured results as small files that are kept: every number under a name of its own, with the command that made it.

    python benchmarks/results.py inspect out/inspect/study.json --command "depthcut study inspect smollm2 ..."

Takes what studies (`study.json`), `depthcut eval` (`results.json`) and the benchmarks write, and puts it into
benchmarks/results/NAME.json. docs/reproduction.md is made of these files alone.
"""

import argparse
import json
import re
from pathlib import Path

from machine import machine

FOLDER = Path(__file__).parent / "results"
COUNTS = ("Units removed", "Step")
"""Columns of whole numbers that tell a study's rows apart, beside those of words."""
NOT_KEPT = ("windows", "importance")
"""Tables of studies that are too large to keep."""


def flatten(found: object, name: str = "") -> dict[str, float]:
    """Every number in an output, under the names that lead to it, joined by ` / `."""
    if isinstance(found, bool):
        return {}
    if isinstance(found, int | float):
        return {name: round(float(found), 5)}
    if isinstance(found, dict) and {"study", "tables"} <= found.keys():
        return {key: value for table in found["tables"] for key, value in _table(table).items()}
    if isinstance(found, dict) and {"name", "model", "value"} <= found.keys():
        text = Path(re.split(r"[ ,]", found.get("data", ""))[0]).name
        label = " / ".join(filter(None, [name, found["name"], found["model"], text]))
        return {label: round(found["value"], 5)} | ({f"{label} ±": found["stderr"]} if found.get("stderr") else {})
    if isinstance(found, dict):
        found = _told_apart(found)
        rows = [(key, value) for key, value in found.items() if key not in ("settings", "machine", "software")]
    elif isinstance(found, list):
        rows = [(_label(row), row) for row in found]
    else:
        return {}
    values = {}
    for key, value in rows:
        values |= flatten(value, " / ".join(filter(None, [name, key])))
    return values


def _told_apart(row: dict) -> dict:
    """Lists of two numbers are what was before a repair and after it."""
    pairs = {key: value for key, value in row.items() if isinstance(value, list) and len(value) == 2}
    named = {
        f"{key} {when}": two[place] for key, two in pairs.items() for place, when in enumerate(("before", "after"))
    }
    return {key: value for key, value in row.items() if key not in pairs} | named


def _label(row: object) -> str:
    """What tells one row of a benchmark's list apart: its words, and how much was removed."""
    if not isinstance(row, dict) or "model" in row:
        return ""
    words = [value for value in row.values() if isinstance(value, str)]
    return " / ".join([*([str(row["removed"])] if isinstance(row.get("removed"), int) else []), *words])


def _table(table: dict) -> dict[str, float]:
    if table["name"] in NOT_KEPT:
        return {}
    values = {}
    for row in table["rows"]:
        cells = dict(zip(table["columns"], row, strict=False))
        # Numbers of a row end what names it, up to the first that is measured.
        words = []
        for column, cell in cells.items():
            if isinstance(cell, str) or column in COUNTS:
                words.append(str(cell))
            else:
                break
        for column, cell in list(cells.items())[len(words) :]:
            if isinstance(cell, int | float) and not column.startswith("±"):
                values[" / ".join([table["name"], *filter(None, words), column])] = round(float(cell), 5)
    return values


def keep(name: str, model: str, command: str, values: dict[str, float], on: dict[str, object]) -> None:
    """Writes one file of results."""
    FOLDER.mkdir(exist_ok=True)
    record = {"model": model, "command": command, "machine": on, "values": values}
    (FOLDER / f"{name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def read(name: str) -> dict:
    """One file of results."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--command", required=True, help="what makes the numbers again")
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    options = parser.parse_args()
    values = {}
    for file in options.files:
        found = json.loads(file.read_text())
        # Of several runs the folder tells which a number is of.
        values |= flatten(found, file.parent.name if len(options.files) > 1 else "")
    keep(options.name, options.model, options.command, values, machine())


if __name__ == "__main__":
    main()
