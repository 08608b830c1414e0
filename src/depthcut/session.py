"""One run before its work begins: the model found, the texts tokenised, everything checked that needs no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from transformers import PreTrainedTokenizerBase

from depthcut.calibration import Samples, parse_source, require_disjoint, sample_self, sample_text
from depthcut.model.load import ModelSource, check_device, resolve
from depthcut.model.stream import DecoderStream, probe
from depthcut.model.units import sizes_from_config
from depthcut.recipe import Recipe
from depthcut.search.problem import Problem
from depthcut.surgery import check_removal
from depthcut.types import InputError, Unit

PROBE_TOKENS = 16


def find_model(recipe: Recipe) -> ModelSource:
    """The recipe's model, before its weights are read."""
    check_device(recipe.device)
    return resolve(
        recipe.model, revision=recipe.revision, dtype=recipe.dtype, trust_remote_code=recipe.trust_remote_code
    )


def pose_problem(recipe: Recipe, source: ModelSource) -> Problem:
    """The search's task.

    Raises:
        InputError: more is asked for than can go, or the family does not allow it.
    """
    units = source.architecture.units(source.provenance.num_blocks)
    preferred = recipe.build_search().preferred_unit
    if preferred == "pair" and source.architecture.parallel:
        preferred = "block"
    problem = Problem(
        architecture=source.architecture,
        num_blocks=source.provenance.num_blocks,
        sizes=sizes_from_config(source.config, source.architecture, source.dtype),
        unit=recipe.unit or preferred,
        budget=recipe.parsed_budget,
        protected=frozenset(_protected(recipe.protect, units)),
        seed=recipe.seed,
    )
    problem.check()
    check_removal(source.config, source.architecture, units[:1])
    return problem


def _protected(names: Sequence[str], units: Sequence[Unit]) -> set[Unit]:
    protected: set[Unit] = set()
    for name in names:
        try:
            chosen = {unit for unit in units if str(unit.layer) == name} or {Unit.parse(name)} & set(units)
        except ValueError as error:
            raise InputError(
                f"cannot protect {name!r}: write a block (0 to {units[-1].layer}) or a sublayer ({units[0]})"
            ) from error
        if not chosen:
            raise InputError(f"cannot protect {name!r}: the model has {units[0]} to {units[-1]}")
        protected |= chosen
    return protected


@dataclass(frozen=True)
class Session:
    """A model and its texts.

    Attributes:
        calibration: None while the model itself has yet to sample it.
        evaluation: None where nothing is measured.
        stream: the engine on the loaded model, None before `load`.
    """

    recipe: Recipe
    source: ModelSource
    tokenizer: PreTrainedTokenizerBase
    calibration: Samples | None
    evaluation: Samples | None
    stream: DecoderStream | None = None

    @classmethod
    def prepare(cls, recipe: Recipe, source: ModelSource, *, calibrate: bool = True, evaluate: bool = True) -> Self:
        """Tokenises the texts; loads no weights.

        Raises:
            InputError: a text is too short, empty, or the same for both purposes.
        """
        tokenizer = source.load_tokenizer()
        text = parse_source(recipe.calibration)
        calibration = None
        if calibrate and not text.is_self:
            calibration = sample_text(
                text,
                tokenizer,
                num_samples=recipe.calibration_samples,
                length=recipe.calibration_length,
                seed=recipe.seed,
                purpose="calibration",
            )
        evaluation = None
        if evaluate:
            evaluation = sample_text(
                parse_source(recipe.evaluation),
                tokenizer,
                num_samples=recipe.evaluation_samples,
                length=recipe.evaluation_length,
                seed=recipe.seed,
                purpose="evaluation",
                exclude=calibration.document_digests if calibration else frozenset(),
            )
        if calibration and evaluation:
            require_disjoint(calibration, evaluation)
        return cls(recipe, source, tokenizer, calibration, evaluation)

    def load(self) -> Self:
        """The same with the model in memory and proven to be runnable from the middle.

        Raises:
            InputError: the weights cannot be read, or do what the family's description does not say.
        """
        recipe = self.recipe
        stream = DecoderStream(self.source.load_model(recipe.device), self.source.architecture)
        calibration = self.calibration
        if calibration is None and parse_source(recipe.calibration).is_self:
            calibration = sample_self(
                stream.model,
                self.tokenizer,
                num_samples=recipe.calibration_samples,
                length=recipe.calibration_length,
                seed=recipe.seed,
            )
        known = calibration or self.evaluation
        if known is not None:
            probe(stream, known.input_ids[:1, :PROBE_TOKENS])
        return replace(self, stream=stream, calibration=calibration)
