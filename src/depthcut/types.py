"""The values that pass between stages: frozen, validated, and the same in memory as in JSON.

Every artefact on disk (scores, plan, measurements) is one of these records, so that a person can read it, a
program can check it against `depthcut schema`, and a stage can refuse what was made for another model.
This module imports nothing of ours.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
)

SCHEMA_VERSION = 1

UnitKind = Literal["attn", "ffn", "mixer", "block"]
UnitChoice = Literal["block", "pair", "attn", "ffn", "sublayer"]


class InputError(ValueError):
    """A bad input of the user's: one sentence saying what was given, what is allowed and what to do.

    The command line prints it and exits with 2; nothing has been written when it is raised.
    """


class ResourceError(InputError):
    """The machine has run out of something; nothing is wrong with the input, so what was found is kept."""


class LostRankError(RuntimeError):
    """Another process of the same job has ended, so nothing can be decided together any more."""


@functools.total_ordering
@dataclass(frozen=True)
class Unit:
    """One sublayer of the decoder, the smallest thing that can be removed; sorts in order of execution.

    Attributes:
        layer: 0-based block index in the dense model.
        kind: `attn`, `ffn`; `mixer` where blocks do not all mix tokens by attention; `block` where they go as a whole.
    """

    layer: int
    kind: UnitKind

    def __lt__(self, other: Unit) -> bool:
        return (self.layer, self.kind == "ffn") < (other.layer, other.kind == "ffn")

    def __str__(self) -> str:
        return f"{self.layer}.{self.kind}"

    @classmethod
    def parse(cls, text: str | Unit) -> Unit:
        """Reads `17.attn`. Raises ValueError on anything else."""
        if isinstance(text, Unit):
            return text
        match = re.fullmatch(r"(\d+)\.(attn|ffn|mixer|block)", str(text))
        if match is None:
            raise ValueError(f"{text!r} is no unit: write the 0-based block and the kind, for example 17.attn or 3.ffn")
        return cls(int(match[1]), match[2])  # type: ignore[arg-type]


UNIT_PATTERN = r"^\d+\.(attn|ffn|mixer|block)$"
UnitField = Annotated[
    Unit,
    BeforeValidator(Unit.parse),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "pattern": UNIT_PATTERN, "examples": ["17.attn"]}),
]
UnitName = Annotated[str, Field(pattern=UNIT_PATTERN)]
Removal = tuple[UnitField, ...]
"""What leaves in one step: one unit, or the units of a block or pair."""


class Record(BaseModel):
    """Base of everything that is saved: frozen, no unknown fields, JSON round trip."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def to_json(self) -> str:
        """The record as indented JSON text, which `from_file` reads back equal."""
        return self.model_dump_json(indent=2) + "\n"

    def write(self, path: Path) -> None:
        """Writes the record so that a killed process leaves the old file or the new one, never half of it."""
        partial = path.with_suffix(".partial")
        partial.write_text(self.to_json(), encoding="utf-8")
        partial.replace(path)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Reads one record. Raises InputError when the file is missing or does not hold one."""
        path = Path(path)
        require_regular(path)
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        except (ValidationError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is no {cls.__name__.lower()} of depthcut: {first_problem(error)}") from error


def require_regular(path: Path) -> None:
    """Raises InputError where a path leads to a pipe or device, of which a reader would wait for ever, or to none."""
    try:
        is_other = path.exists() and not (path.is_file() or path.is_dir())
    except (OSError, ValueError) as error:
        raise InputError(f"{shown_name(str(path))} is no name of a file ({error_reason(error)})") from error
    if is_other:
        raise InputError(f"{path} is no regular file but a pipe or device; save its content and name that file")


def error_reason(error: OSError | ValueError) -> str:
    """What went wrong with a name, in words without the name."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def shown_name(name: str) -> str:
    """A name as it can be printed in a sentence: escaped, and its begin where it is long."""
    return repr(name if len(name) <= 80 else name[:77] + "...")


def first_problem(error: ValidationError | UnicodeDecodeError) -> str:
    """The first complaint of a validation in one line: where, and what is wrong."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else problem["msg"]


class Provenance(Record):
    """Where a model came from, in enough detail to distinguish two models.

    Attributes:
        source: what the user named: hub id, directory or file.
        revision: commit of a hub model.
        digest: sha256 over names, sizes and sampled bytes of the configuration and weight files.
        dtype: what is computed in.
        written_dtype: what the pruned model is written in; None where that is the same.
        quantisation: storage type of the source's weights, where quantised: of a GGUF, which is dequantised on loading
            (`Q4_1`), or of a directory, which stays as it is (`nf4`).
        adapter: folder of the adapter that was merged into it, as the user named it.
    """

    source: str
    format: Literal["hub", "directory", "gguf", "memory"]
    revision: str | None = None
    digest: str
    model_type: str
    num_blocks: int
    dtype: str
    written_dtype: str | None = None
    quantisation: str | None = None
    adapter: str | None = None

    def __str__(self) -> str:
        return f"{self.source}, {self.revision or self.digest}, {self.dtype}"

    @property
    def name(self) -> str:
        """The source for people: of a path or a hub id its last part."""
        return self.source.rstrip("/").rpartition("/")[2]


class TextDescription(Record):
    """Which text a stage saw. Two stages saw the same tokens exactly when the digests are equal.

    Attributes:
        source: the SOURCE the user wrote, or the default's name.
        detail: file, split, column or seed that the text was taken from, for people.
        num_samples: sequences.
        length: token ids a sequence.
        digest: sha256 of the token ids.
    """

    source: str
    detail: str = ""
    num_samples: int
    length: int
    seed: int
    digest: str


class Scores(Record):
    """Importance of every unit by one metric; larger = more damage when removed.

    Attributes:
        values: by unit (`17.attn`), or by block (`17`) where `unit` is `block`.
        standard_errors: same keys, where the metric is an estimate over sequences.
        measure: unit of measure of the values.
    """

    metric: str
    unit: Literal["block", "sublayer"]
    measure: str
    values: dict[str, float]
    standard_errors: dict[str, float] | None = None


class ScoreTable(Record):
    """All that one scoring pass found: `scores.json`.

    Attributes:
        angular: d(l, n) of UIDL: row l holds the distances for n = 1 .. L - l, each in [0, 1].
    """

    schema_version: int = SCHEMA_VERSION
    model: Provenance
    calibration: TextDescription
    scores: tuple[Scores, ...]
    angular: tuple[tuple[float, ...], ...]

    def find(self, metric: str, unit: Literal["block", "sublayer"]) -> Scores:
        """The scores of one metric; KeyError when the pass did not compute it."""
        for scores in self.scores:
            if scores.metric == metric and scores.unit == unit:
                return scores
        raise KeyError(f"{metric} for {unit}")


class Step(Record):
    """One removal of a path.

    Attributes:
        objective: value of the plan's objective after this step, None where the method has none.
        applied: whether the model beside this plan was made with this step.
    """

    remove: Removal
    objective: float | None = None
    applied: bool = False


class UnitSize(Record):
    """What removing one unit saves.

    Attributes:
        parameters: of the branch, its own norms included.
        kv_bytes_per_token: keys and values that an attention keeps for one token of one sequence, at a context
            shorter than any sliding window; 0 for the other kinds.
    """

    parameters: int = Field(ge=0)
    kv_bytes_per_token: int = Field(ge=0)


class Latency(Record):
    """Time to decode one token on one machine.

    Attributes:
        token_seconds: of the whole dense model.
        unit_seconds: of one unit, by kind.
    """

    token_seconds: float
    unit_seconds: dict[str, float]


class Cost(Record):
    """What finding a plan took.

    Attributes:
        unit_evaluations: single attentions or FFNs run on one calibration sequence, by one process that keeps every
            stream; the same number whoever did the work, and however often it was interrupted.
        candidate_evaluations: removed sets whose objective was asked for, in shares of the calibration text.
        seconds: of this process; not written with the plan, which says nothing that differs between equal runs.
    """

    unit_evaluations: int = 0
    candidate_evaluations: int = 0
    seconds: float = Field(default=0.0, exclude=True)

    def __eq__(self, other: object) -> bool:
        """Costs are equal where the work is, however long it took."""
        return isinstance(other, Cost) and self.model_dump() == other.model_dump()

    def __hash__(self) -> int:
        return hash((self.unit_evaluations, self.candidate_evaluations))


class Plan(Record):
    """An ordered path of removals: `plan.json`. Its first k steps are themselves a plan.

    Attributes:
        budget: what was asked for, as written by `Budget`.
        objective: name of what `Step.objective` holds.
        protected: units that no step may remove.
        unit_sizes: of every unit of the dense model, so that the size after any step follows from the plan alone.
    """

    schema_version: int = SCHEMA_VERSION
    model: Provenance
    calibration: TextDescription | None
    method: str
    unit: UnitChoice
    budget: str
    objective: str | None = None
    protected: tuple[UnitField, ...] = ()
    seed: int = 0
    unit_sizes: dict[UnitName, UnitSize] = {}
    steps: tuple[Step, ...]
    cost: Cost = Cost()

    @property
    def removed(self) -> tuple[Unit, ...]:
        """Units of the applied steps, in order of execution."""
        return tuple(sorted(unit for step in self.steps if step.applied for unit in step.remove))

    def applying(self, num_steps: int) -> Plan:
        """The same path with exactly its first `num_steps` steps marked as applied.

        Raises:
            InputError: the path has fewer.
        """
        if not 0 <= num_steps <= len(self.steps):
            raise InputError(f"the plan has {len(self.steps)} steps, so {num_steps} of them cannot be applied")
        steps = (step.model_copy(update={"applied": i < num_steps}) for i, step in enumerate(self.steps))
        return self.model_copy(update={"steps": tuple(steps)})

    def require_made_for(self, given: Provenance) -> None:
        """Raises InputError when the plan was made for another model, or says what no plan for it can say."""
        made_for = self.model
        if made_for.digest != given.digest:
            raise InputError(
                f"the plan was made for {made_for.source} ({made_for.model_type}, {made_for.num_blocks} blocks, digest "
                f"{made_for.digest[:12]}), not for {given.source} ({given.model_type}, {given.num_blocks} blocks, "
                f"digest {given.digest[:12]}); give that model, or make a plan for this one"
            )
        if made_for.num_blocks != given.num_blocks:
            raise InputError(
                f"the plan says that {given.source} has {made_for.num_blocks} blocks, and it has {given.num_blocks}; "
                "the plan was changed by hand, so make it again"
            )
        self._require_sound(given.num_blocks)

    def _require_sound(self, num_blocks: int) -> None:
        named = [unit for step in self.steps for unit in step.remove]
        for unit in [*named, *self.protected, *map(Unit.parse, self.unit_sizes)]:
            if unit.layer >= num_blocks:
                raise InputError(
                    f"the plan names {unit}, and the model has blocks 0 to {num_blocks - 1}; make it again"
                )
        if twice := [unit for unit, count in Counter(named).items() if count > 1]:
            raise InputError(f"the plan removes {twice[0]} twice; make it again")
        for number, step in enumerate(self.steps, start=1):
            if step.objective is not None and not math.isfinite(step.objective):
                raise InputError(f"step {number} of the plan has the objective {step.objective}; make the plan again")
