"""One run before its work begins: the model found, the texts tokenised, everything checked that needs no weights."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from transformers import PreTrainedTokenizerBase

from depthcut.ablation.objectives import TASK_OBJECTIVES
from depthcut.calibration import (
    Samples,
    parse_source,
    require_disjoint,
    sample_questions,
    sample_self,
    sample_text,
)
from depthcut.evaluation.questions import Questions
from depthcut.model.device import check_device, chosen_device
from depthcut.model.load import ModelSource, resolve
from depthcut.model.paging import Pager
from depthcut.model.stream import DecoderStream, probe
from depthcut.model.units import ModelSizes, sizes_from_config
from depthcut.process.memory import KEPT_BY_DEFAULT, Room, room_for_weights, share_out
from depthcut.repair import check_repairs
from depthcut.run.recipe import Recipe
from depthcut.search.problem import Budget, Problem
from depthcut.surgery import check_removal
from depthcut.types import InputError, Unit

PROBE_TOKENS = 16


def find_model(recipe: Recipe, *, needs_weights: bool = True) -> ModelSource:
    """The recipe's model, before its weights are read.

    Args:
        needs_weights: whether a directory that holds a configuration alone is refused.
    """
    check_device(recipe.device)
    source = resolve(
        recipe.model,
        revision=recipe.revision,
        dtype=recipe.dtype,
        save_dtype=recipe.save_dtype,
        trust_remote_code=recipe.trust_remote_code,
        needs_weights=needs_weights,
    )
    if recipe.dtype != "auto":
        return source
    found = source.on(recipe.device, room_for_weights(recipe.memory_bytes))
    if found.dtype != source.dtype:
        print(
            f"computing in {found.provenance.dtype}, in which this processor is faster; written in "
            f"{found.provenance.written_dtype}",
            file=sys.stderr,
        )
    return found


def pose_problem(recipe: Recipe, source: ModelSource) -> Problem:
    """The search's task.

    Raises:
        InputError: more is asked for than can go, or the family does not allow it.
    """
    if recipe.max_increase and recipe.calibration_samples < 2:
        raise InputError("max-increase measures on held-out calibration text, so give at least 2 calibration samples")
    units = source.architecture.units(source.provenance.num_blocks)
    preferred = recipe.build_search().preferred_unit
    if preferred == "pair" and not source.architecture.pairs:
        preferred = "block"
    sizes = sizes_from_config(source.config, source.architecture, source.dtype)
    problem = Problem(
        architecture=source.architecture,
        num_blocks=source.provenance.num_blocks,
        sizes=sizes,
        unit=recipe.unit or preferred,
        budget=_budget(recipe, source, sizes),
        protected=frozenset(_protected(recipe.protect, units)),
        seed=recipe.seed,
    )
    problem.check()
    recipe.build_search().check(problem)
    check_removal(source.config, source.architecture, [unit for first in problem.candidates()[:1] for unit in first])
    return problem


def _budget(recipe: Recipe, source: ModelSource, sizes: ModelSizes) -> Budget:
    """What has to go of this model; bytes are those of the written model's weights."""
    budget, stored = recipe.parsed_budget, source.provenance.quantisation
    if budget.kind == "bytes" and stored is not None and source.gguf_file is None:
        raise InputError(
            f"the weights of {source.provenance.name} are stored as {stored}, so that parameters differ in bytes; give "
            "a share, such as --budget parameters=0.8"
        )
    return budget.of_weights(sizes.parameters, source.written_dtype.itemsize)


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
        repair_text: what repairs are fitted to; None where there are none, and while the model has yet to sample it.
        evaluation: None where nothing is measured.
        questions: what both models are asked beside it.
        repairs: whether the pruned model will be repaired.
        stream: the engine on the loaded model, None before `load`.
        room: what may be taken of memory.
    """

    recipe: Recipe
    source: ModelSource
    tokenizer: PreTrainedTokenizerBase
    calibration: Samples | None
    repair_text: Samples | None
    evaluation: Samples | None
    repairs: bool = False
    questions: Questions = field(default_factory=Questions)
    stream: DecoderStream | None = None
    room: Room = field(default_factory=lambda: Room(KEPT_BY_DEFAULT, None))

    @classmethod
    def prepare(
        cls,
        recipe: Recipe,
        source: ModelSource,
        *,
        calibrate: bool = True,
        repair: bool = True,
        evaluate: bool = True,
    ) -> Self:
        """Tokenises the texts; loads no weights.

        Raises:
            InputError: a text is too short, empty, or the same for both purposes, or a repair cannot be done.
        """
        repair = repair and bool(recipe.repairs)
        if repair:
            check_repairs(recipe.repairs, source.architecture, source.config)
        _require_context(recipe, source, calibrate=calibrate, evaluate=evaluate)
        tokenizer = source.load_tokenizer()
        text = parse_source(recipe.calibration)
        calibration = None
        if calibrate and recipe.build_search().objective in TASK_OBJECTIVES:
            calibration = sample_questions(
                text,
                tokenizer,
                num_questions=recipe.calibration_samples,
                max_length=recipe.calibration_length,
                seed=recipe.seed,
            )
        elif calibrate and not text.is_self:
            calibration = sample_text(
                text,
                tokenizer,
                num_samples=recipe.calibration_samples,
                length=recipe.calibration_length,
                seed=recipe.seed,
                purpose="calibration",
            )
        repair_text = None
        if repair and not parse_source(recipe.repair_source).is_self:
            repair_text = sample_text(
                parse_source(recipe.repair_source),
                tokenizer,
                num_samples=recipe.num_repair_samples,
                length=recipe.calibration_length,
                seed=recipe.seed,
                purpose="calibration",
            )
        seen = [samples for samples in (calibration, repair_text) if samples is not None]
        evaluation = None
        if evaluate:
            evaluation = sample_text(
                parse_source(recipe.evaluation),
                tokenizer,
                num_samples=recipe.evaluation_samples,
                length=recipe.evaluation_length,
                seed=recipe.seed,
                purpose="evaluation",
                exclude=frozenset().union(*(samples.document_digests for samples in seen)),
            )
            for samples in seen:
                require_disjoint(samples, evaluation)
            seen.append(evaluation)
        for samples in seen:
            if int(samples.input_ids.max()) >= source.config.get_text_config().vocab_size:
                raise InputError(
                    f"the tokenizer of {source.provenance.source} writes token {int(samples.input_ids.max())}, and the "
                    f"model knows {source.config.get_text_config().vocab_size} tokens; they do not belong together"
                )
        questions = recipe.load_questions() if evaluate else Questions()
        return cls(recipe, source, tokenizer, calibration, repair_text, evaluation, repair, questions)

    def load(self) -> Self:
        """The same with the model in memory and proven to be runnable from the middle.

        Raises:
            InputError: the weights cannot be read, or do what the family's description does not say.
        """
        recipe = self.recipe
        room = self._share_out_memory()
        pager = None if room.weights is None else Pager(room.weights, activations=room.kept // 2)
        stream = DecoderStream(self.source.load_model(recipe.device, pager), self.source.architecture)
        calibration = self.calibration
        text = calibration or self.evaluation
        _require_finite(stream, text.input_ids[:1, :PROBE_TOKENS] if text else torch.arange(PROBE_TOKENS)[None])
        repair_text = self.repair_text
        own = functools.partial(
            sample_self, stream.model, self.tokenizer, length=recipe.calibration_length, seed=recipe.seed
        )
        if calibration is None and parse_source(recipe.calibration).is_self:
            calibration = own(num_samples=recipe.calibration_samples)
        if self.repairs and repair_text is None:
            repair_text = own(num_samples=recipe.num_repair_samples)
        known = calibration or self.evaluation
        if known is not None:
            probe(stream, known.input_ids[:1, :PROBE_TOKENS])
        return replace(self, stream=stream, calibration=calibration, repair_text=repair_text, room=room)

    def _share_out_memory(self) -> Room:
        """What this run may take of memory. On a GPU the weights lie there, whatever their size."""
        recipe = self.recipe
        weights = self.source.weight_bytes if chosen_device(recipe.device) == "cpu" else 0
        room = share_out(recipe.memory_bytes, weights)
        trained = [name for name, method in recipe.repairs if method.num_sequences]
        if room.weights is not None and self.repairs and trained:
            raise InputError(
                f"the weights take {weights / 1e9:.1f} GB and do not fit into the memory budget, so {trained[0]} "
                "cannot train them; give a larger --memory-budget, or --repair refit"
            )
        return room


def _require_context(recipe: Recipe, source: ModelSource, *, calibrate: bool, evaluate: bool) -> None:
    """Raises InputError where sequences are longer than what the model was made for; learned positions end there."""
    context = getattr(source.config.get_text_config(), "max_position_embeddings", None)
    lengths = {"calibration": recipe.calibration_length if calibrate else 0}
    lengths["evaluation"] = recipe.evaluation_length if evaluate else 0
    for purpose, length in lengths.items():
        if context is not None and length > context:
            raise InputError(
                f"{purpose} sequences of {length} tokens are longer than the model's context of {context}; "
                f"give --{purpose}-length {context} or less"
            )


@torch.no_grad()
def _require_finite(stream: DecoderStream, input_ids: torch.Tensor) -> None:
    """Looks for NaN first: the probe compares bit for bit, would take it for another architecture and say so.

    Raises:
        InputError: an activation or a logit is not finite.
    """

    def check(where: str, values: torch.Tensor) -> None:
        if not bool(torch.isfinite(values).all()):
            raise InputError(
                f"the activations at {where} are not finite (NaN or infinite); check the weights, or load the model "
                "with --dtype float32"
            )

    batch = stream.prepare(input_ids)
    check("the embedding", batch.embedded)
    final = stream.run(batch, visit=lambda unit, _, after: check(str(unit), after) if isinstance(unit, Unit) else None)
    for _, logits in stream.logits(batch, final):
        check("the output", logits)
