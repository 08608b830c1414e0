"""What pruned models are worth: loss and KL on the evaluation text, tasks; each model is measured once and kept."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel

from depthcut.evaluation.compare import software
from depthcut.evaluation.harness import model_digest
from depthcut.evaluation.language import compare_language
from depthcut.evaluation.questions import Answers
from depthcut.evaluation.retention import AVERAGE
from depthcut.model.load import ModelSource
from depthcut.model.stream import DecoderStream
from depthcut.process.journal import Journal
from depthcut.repairs import check_repairs
from depthcut.results import Measurement
from depthcut.run.recipe import Recipe
from depthcut.run.repair import repair
from depthcut.run.session import Loaded, Prepared, prepare
from depthcut.studies.questions import NOT_REPAIRED
from depthcut.surgery import apply
from depthcut.types import InputError, Plan, TextDescription

DENSE, PRUNED = "dense", "pruned"


@dataclass(frozen=True)
class Measure:
    """One number that every model gets.

    Attributes:
        name: of the measurement.
        label: for people, with the unit of measure.
        is_log: whether a figure's axis is logarithmic.
        is_better_less: whether less of it is better.
    """

    name: str
    label: str
    is_log: bool = False
    is_better_less: bool = True

    @property
    def short(self) -> str:
        """The label without its unit of measure."""
        return self.label.partition(",")[0]

    @property
    def file_name(self) -> str:
        return self.name.replace("/", "-")

    def damage(self, value: float) -> float:
        """The value with a sign such that more is worse; a perplexity's logarithm, which is the loss."""
        if self.is_log:
            return math.log(value)
        return value if self.is_better_less else -value


TEXT_MEASURES = (
    Measure("perplexity", "Perplexity", is_log=True),
    Measure("kl_to_dense", "KL to dense, nats per token"),
)
CHOICE_ENDINGS = ("/acc_norm", "/acc")


@dataclass(frozen=True)
class Candidate:
    """One pruned model to measure.

    Attributes:
        repair: repairs after the removal, as `--repair` has them.
    """

    plan: Plan
    repair: str = NOT_REPAIRED

    @property
    def key(self) -> tuple[tuple[str, ...], str]:
        """Two candidates are the same model exactly when their keys are equal."""
        return tuple(map(str, self.plan.removed)), self.repair


def label(method: str, repair: str) -> str:
    """What a line of a table or figure is called."""
    return method if repair == NOT_REPAIRED else f"{method}, {repair}"


def texts_of(loaded: Loaded) -> dict[str, TextDescription]:
    """Descriptions of a run's texts by their use."""
    return {use: text.description for use, text in loaded.texts.items()}


def prepare_repairs(recipe: Recipe, source: ModelSource, repairs: Sequence[str]) -> Prepared:
    """The run that serves all repairs, with the text that they are fitted to.

    Raises:
        InputError: a repair is unknown, named twice, or cannot be made on such a model.
    """
    if len(set(repairs)) != len(repairs):
        raise InputError(f"a repair is named twice among {', '.join(repairs)}; name each once")
    made = [name for name in repairs if name != NOT_REPAIRED]
    for name in repairs:
        recipe.model_copy(update={"repair": name}).check()
    prepared = prepare(recipe.model_copy(update={"repair": made[0] if made else NOT_REPAIRED}), source)
    for name in made:
        chain = recipe.model_copy(update={"repair": name}).repairs
        check_repairs(chain, source.architecture, source.config)
    return prepared


class Quality:
    """Measures pruned models of a loaded run; what a killed process measured is not measured again.

    Args:
        file: journal of what was measured.
    """

    def __init__(self, loaded: Loaded, file: Path) -> None:
        self.loaded, self.stream, self.evaluation = loaded, loaded.stream, loaded.evaluation
        settings = {
            "model": loaded.source.provenance.digest,
            "dtype": loaded.source.provenance.dtype,
            "evaluation": loaded.evaluation.description.digest,
        }
        self._journal = Journal(file, settings)
        self._known = {
            (tuple(line["removed"]), line["repair"]): [Measurement(**row) for row in line["measurements"]]
            for line in self._journal.lines
        }

    @property
    def dense(self) -> list[Measurement]:
        """What was measured of the dense model; known after the first of the others."""
        return self._known[(), NOT_REPAIRED]

    def of(self, candidate: Candidate) -> list[Measurement]:
        """What was measured of a candidate."""
        return self._known[candidate.key]

    def value(self, name: str, candidate: Candidate | None) -> float:
        """One number of a candidate, or of the dense model where that is None."""
        return self.with_error(name, candidate)[0]

    def with_error(self, name: str, candidate: Candidate | None) -> tuple[float, float | None]:
        """The same with its standard error."""
        if candidate is None and name == "kl_to_dense":
            return 0.0, None
        measured = self.dense if candidate is None else self.of(candidate)
        return next((row.value, row.stderr) for row in measured if row.name == name)

    @property
    def measures(self) -> list[Measure]:
        """What was measured: on the text, and one score that stands for all tasks where any were asked."""
        names = [row.name for row in self.dense]
        scores = [
            f"{AVERAGE}/accuracy",
            *(name for ending in CHOICE_ENDINGS for name in names if name.endswith(ending)),
        ]
        found = [name for name in scores if name in names][:1]
        return [*TEXT_MEASURES, *(Measure(name, f"{name}, share of items", is_better_less=False) for name in found)]

    def measure(self, candidates: Sequence[Candidate]) -> None:
        """Measures those that are not known yet.

        Models that are not repaired go side by side, which shares the dense model's pass; a repair takes many times as
        long as that, so each repaired model is measured and kept by itself.
        """
        missing = {each.key: each for each in candidates if each.key not in self._known and each.plan.removed}
        groups = [[each for each in missing.values() if each.repair == NOT_REPAIRED]]
        groups += [[each] for each in missing.values() if each.repair != NOT_REPAIRED]
        for group in filter(None, groups):
            self._measure(group)

    def _measure(self, group: Sequence[Candidate]) -> None:
        architecture = self.loaded.source.architecture
        streams = {
            str(place): DecoderStream(self._model(candidate), architecture) for place, candidate in enumerate(group)
        }
        measured = compare_language(self.stream, streams, self.evaluation)
        asked: list[Measurement] = []
        for (name, stream), candidate in zip(streams.items(), group, strict=True):
            answers = self._ask(stream, candidate)
            asked = self.loaded.questions.compare(self._dense_answers, answers, self.stream.model)
            self._keep(candidate.key, _of_model(name, measured) + _of_model(PRUNED, asked))
        if ((), NOT_REPAIRED) not in self._known:
            self._keep(((), NOT_REPAIRED), _of_model(DENSE, [*measured, *asked]))

    def _model(self, candidate: Candidate) -> PreTrainedModel:
        cut = apply(self.stream.model, self.loaded.source.architecture, candidate.plan.removed)
        recipe = self.loaded.recipe.model_copy(update={"repair": candidate.repair})
        return repair(replace(self.loaded, recipe=recipe), candidate.plan, cut, None)[0]

    @functools.cached_property
    def _dense_answers(self) -> Answers:
        return self._ask_model(DENSE, self.stream, self._dense_digest)

    @functools.cached_property
    def _dense_digest(self) -> str:
        return model_digest(self.loaded.source) if self.loaded.questions.suite else ""

    def _ask(self, stream: DecoderStream, candidate: Candidate) -> Answers:
        """Asks a model that lies in no file, known by what it was made from and how."""
        fitted_to = self.loaded.repair_text.description.digest if "repair" in self.loaded.uses else ""
        made = [self._dense_digest, *candidate.key, fitted_to, self.loaded.recipe.seed, software()["depthcut"]]
        name = f"{label(candidate.plan.method, candidate.repair)} without {len(candidate.plan.removed)} sublayers"
        return self._ask_model(name, stream, hashlib.sha256(json.dumps(made).encode()).hexdigest())

    def _ask_model(self, name: str, stream: DecoderStream, digest: str) -> Answers:
        return self.loaded.questions.ask(name, stream.model, self.loaded.tokenizer, digest)

    def _keep(self, key: tuple[tuple[str, ...], str], measurements: list[Measurement]) -> None:
        self._known[key] = measurements
        rows = [measurement.model_dump() for measurement in measurements]
        self._journal.add({"removed": list(key[0]), "repair": key[1], "measurements": rows})


def _of_model(name: str, measurements: Sequence[Measurement]) -> list[Measurement]:
    return [measurement for measurement in measurements if measurement.model == name]
