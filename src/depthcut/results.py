"""The saved results of a run: measurements, repairs, and generated texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from depthcut.types import InputError, Record, TextDescription, first_problem, require_regular

DECODING_BYTES = "decoding_bytes"
"""Name of what weights and cache take after the context that `data` begins with."""


class Repair(Record):
    """What a repair did: one of the list in `repair.json`.

    Attributes:
        settings: its hyper-parameters.
        text: what it was fitted to or trained on.
        held_out: what it was judged on.
        objective: what had to fall: `before` and `after` are its values there.
        kept: whether it helped; where not, the model is as it was.
        units: by unit that was refitted or replaced, the share of its error on held-out text that is left.
        curve: training loss by step.
    """

    method: str
    settings: dict[str, bool | int | float | str | tuple[float | str, ...] | None]
    text: TextDescription
    held_out: TextDescription
    objective: str
    before: float
    after: float
    kept: bool
    units: dict[str, float] = Field(default={})
    curve: tuple[tuple[int, float], ...] = ()


class Measurement(Record):
    """One number about one model, with what is needed to believe it.

    Attributes:
        model: which model: `dense`, `pruned`, or the name of a further one; `search` of the search itself.
        data: the text or setting it was measured on.
        source: the dense model that it is about or was made from: name, digest or revision, dtype.
        stderr: standard error of the value, where it is an estimate.
        samples: how many sequences or repetitions the value is over.
    """

    name: str
    value: float
    unit: str
    model: str
    source: str = ""
    data: str = ""
    stderr: float | None = None
    samples: int | None = None
    software: str = ""
    device: str = ""


class GenerationSample(Record):
    """What the dense and the pruned model write after one prompt: one of the list in `generation.json`.

    Attributes:
        setting: how tokens were chosen, for people: `greedy`, `temperature 0.8, seed 0`.
    """

    prompt: str
    dense: str
    pruned: str
    setting: str = ""


RecordType = TypeVar("RecordType", Measurement, Repair, GenerationSample)

_NAMES = {Measurement: "measurements", Repair: "repairs", GenerationSample: "generation samples"}


def write_list(records: Sequence[Record], path: Path) -> None:
    """Writes `results.json`, `repair.json` or `generation.json`: a JSON list of records."""
    rows: list[dict[str, Any]] = [record.model_dump() for record in records]
    path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def read_list(kind: type[RecordType], path: Path) -> list[RecordType]:
    """Reads what `write_list` wrote. Raises InputError when the file is missing or holds something else."""
    require_regular(path)
    try:
        return TypeAdapter(list[kind]).validate_json(path.read_text(encoding="utf-8"))  # type: ignore[valid-type]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise InputError(f"{path} holds no {_NAMES[kind]} of depthcut: {first_problem(error)}") from error
