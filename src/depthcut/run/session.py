"""The first stages of a run: the model found, the task posed, the texts tokenised, and then the weights loaded."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from depthcut.calibration import Samples
from depthcut.evaluation.questions import Questions
from depthcut.export.stored import lying_in
from depthcut.importance import METRICS, check_metrics
from depthcut.methods.budget import Budget, Memory, StoredBytes
from depthcut.methods.problem import Problem
from depthcut.model.cache import cache_bytes
from depthcut.model.device import check_device, chosen_device
from depthcut.model.load import ModelSource, resolve
from depthcut.model.paging import Pager
from depthcut.model.proof import prove
from depthcut.model.stored import block_index
from depthcut.model.stream import DecoderStream
from depthcut.model.units import ModelSizes, choose_units, sizes_from_config
from depthcut.process.memory import Room, room_for_weights
from depthcut.process.ranks import ALONE, Ranks
from depthcut.repairs import check_repairs
from depthcut.run.recipe import Recipe
from depthcut.run.room import find_room
from depthcut.run.texts import USES, Use, read_texts, require_context, settle_texts, write_texts
from depthcut.surgery import can_be_removed, check_removal
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
        adapter=recipe.adapter,
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


def settle_storage(recipe: Recipe, source: ModelSource) -> tuple[Recipe, ModelSource]:
    """What it means that weights are stored quantised: they stay so, unless a repair that is asked for makes new ones.

    Returns:
        The recipe, without the repair that is its default; and the source, written dequantised where a repair remains.
    """
    if not (source.is_dequantised or source.stays_quantised) or not recipe.repairs:
        return recipe, source
    if recipe.repair is None and source.as_stored:
        further = (
            "give --repair refit to write them dequantised" if source.is_dequantised else "repair before quantising"
        )
        print(
            f"the weights are stored as {source.provenance.quantisation} and stay so, so nothing is repaired; "
            f"{further}",
            file=sys.stderr,
        )
        return recipe.model_copy(update={"repair": "none"}), source
    return recipe, replace(source, as_stored=False)


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
    budget = _budget(recipe, source, sizes)
    problem = Problem(
        architecture=source.architecture,
        num_blocks=source.provenance.num_blocks,
        sizes=sizes,
        unit=recipe.unit or preferred,
        budget=budget,
        memory=_memory(source, sizes, budget),
        protected=frozenset(choose_units(recipe.protect, units, verb="protect")),
        allows=lambda removed: can_be_removed(source.config, source.architecture, removed),
        seed=recipe.seed,
    )
    problem.check()
    recipe.build_search().check(problem)
    check_removal(source.config, source.architecture, [unit for first in problem.candidates()[:1] for unit in first])
    return problem


def _budget(recipe: Recipe, source: ModelSource, sizes: ModelSizes) -> Budget:
    """What has to go of this model; bytes are those of the written model's weights."""
    budget = recipe.parsed_budget
    if not any(each.kind == "bytes" for each in budget.all):
        return budget
    return budget.of_weights(sizes.parameters, _stored_bytes(source, sizes))


def _memory(source: ModelSource, sizes: ModelSizes, budget: Budget) -> Memory | None:
    """Bytes of each unit while decoding, where the budget is one of memory."""
    for each in budget.all:
        if each.kind == "memory":
            return memory_of(source, sizes, each.context, each.batch)
    return None


def memory_of(source: ModelSource, sizes: ModelSizes, context: int, batch: int = 1) -> Memory:
    """Bytes of the written weights and of the cache of some sequences."""
    stored = _stored_bytes(source, sizes)
    written = sizes_from_config(source.config, source.architecture, source.written_dtype)
    cache = cache_bytes(source.config, source.architecture, written, context)
    units = {unit: size.parameters * stored.of_unit + batch * cache[unit] for unit, size in sizes.units.items()}
    of_units = sum(size.parameters for size in sizes.units.values())
    return Memory(stored.total - of_units * stored.of_unit, units)


def _stored_bytes(source: ModelSource, sizes: ModelSizes) -> StoredBytes:
    """What the written model's weights take. Of those that stay quantised the files say it, the blocks' on average.

    Raises:
        InputError: the files are not here.
    """
    of_units = sum(size.parameters for size in sizes.units.values())
    if source.stays_quantised or (source.is_dequantised and source.as_stored):
        lying = lying_in(source.folder)
        if not lying:
            raise InputError(
                f"what the weights of {source.provenance.source} take, stored as {source.provenance.quantisation}, "
                "only their files say; download the model first and give its directory, or a share: --budget "
                "parameters=0.8"
            )
        total = sum(tensor.num_bytes for tensor in lying.values())
        blocks = [lying[name].num_bytes for name in lying if block_index(source.architecture, name) is not None]
        return StoredBytes(total, sum(blocks) / of_units)
    itemsize = source.written_dtype.itemsize
    return StoredBytes(sizes.parameters * itemsize, itemsize)


@dataclass(frozen=True)
class Prepared:
    """A run that is checked, before its weights are read.

    Attributes:
        uses: what the run needs text for, in the order of `USES`.
        texts: token ids by use; those that the model has yet to write, all or in part, are missing.
        others: of those that the model writes in part, what it does not write.
        questions: what both models are asked beside the evaluation text.
    """

    recipe: Recipe
    source: ModelSource
    tokenizer: PreTrainedTokenizerBase
    uses: tuple[Use, ...]
    texts: Mapping[Use, Samples]
    others: Mapping[Use, Samples]
    questions: Questions

    @property
    def evaluation(self) -> Samples:
        """What models are compared on."""
        return self.texts["evaluation"]


@dataclass(frozen=True)
class Session:
    """A model in memory, proven to be runnable from the middle, and texts: all that scores, searches and repairs need.

    Attributes:
        texts: token ids by use.
        stream: the engine on the dense model.
        room: what may be taken of memory.
    """

    recipe: Recipe
    source: ModelSource
    texts: Mapping[Use, Samples]
    stream: DecoderStream
    room: Room

    @property
    def calibration(self) -> Samples:
        """What scores and searches see."""
        return self.texts["calibration"]

    @property
    def repair_text(self) -> Samples:
        """What repairs are fitted to."""
        return self.texts["repair"]

    @property
    def evaluation(self) -> Samples:
        """What models are compared on."""
        return self.texts["evaluation"]


@dataclass(frozen=True)
class Loaded(Session):
    """The same with what asking and writing need; the texts are those of `uses`."""

    tokenizer: PreTrainedTokenizerBase
    uses: tuple[Use, ...]
    questions: Questions


def prepare(recipe: Recipe, source: ModelSource, uses: tuple[Use, ...] = USES) -> Prepared:
    """Tokenises the texts; loads no weights.

    Args:
        uses: what text is needed for; `repair` counts only where the recipe repairs.

    Raises:
        InputError: a text is too short, empty, or the same for both purposes, or a repair cannot be done.
    """
    recipe = settle_texts(recipe, source)
    needed = tuple(use for use in USES if use in uses and (use != "repair" or recipe.repairs))
    if "repair" in needed:
        check_repairs(recipe.repairs, source.architecture, source.config)
    if "calibration" in needed:
        check_metrics(recipe.metrics, source.config)
    require_context(recipe, source, needed)
    tokenizer = source.load_tokenizer()
    texts, others = read_texts(recipe, tokenizer, needed)
    for samples in (*texts.values(), *others.values()):
        largest, known = int(samples.input_ids.max()), source.config.get_text_config().vocab_size
        if largest >= known:
            raise InputError(
                f"the tokenizer of {source.provenance.source} writes token {largest}, and the model knows {known} "
                "tokens; they do not belong together"
            )
    questions = recipe.load_questions() if "evaluation" in needed else Questions()
    return Prepared(recipe, source, tokenizer, needed, texts, others, questions)


def load(prepared: Prepared, ranks: Ranks = ALONE, folder: Path | None = None) -> Loaded:
    """The model in memory, on this process's device, and all texts; what the model writes is the same for all ranks.

    Args:
        folder: where what the model writes is kept for a run that is killed; nowhere where left out.

    Raises:
        InputError: the weights cannot be read, or do what the family's description does not say.
    """
    recipe = prepared.recipe.model_copy(update={"device": ranks.device(prepared.recipe.device)})
    room = _share_out_memory(recipe, prepared)
    pager = None if room.weights is None else Pager(room.weights, room.abreast, chosen_device(recipe.device))
    source = prepared.source
    stream = DecoderStream(source.load_model(recipe.device, pager), source.architecture)
    if pager is not None:
        source = source.written_as_computed()
    known = _known_text(prepared.texts)
    _require_finite(stream, torch.arange(PROBE_TOKENS)[None] if known is None else known.input_ids[:1, :PROBE_TOKENS])
    missing = [use for use in prepared.uses if use not in prepared.texts]

    def whole() -> dict[Use, Samples]:
        model, tokenizer, others = stream.model, prepared.tokenizer, prepared.others
        written = write_texts(recipe, source, model, tokenizer, missing, others, folder, room.kept, ranks)
        return {**prepared.texts, **written}

    texts = ranks.from_first(whole)
    known = _known_text(texts)
    if known is not None:
        prove(stream, known.input_ids[:1, :PROBE_TOKENS])
    return Loaded(recipe, source, texts, stream, room, prepared.tokenizer, prepared.uses, prepared.questions)


def _known_text(texts: Mapping[Use, Samples]) -> Samples | None:
    """Text that the model can be tried on."""
    return texts.get("calibration", texts.get("evaluation"))


def _share_out_memory(recipe: Recipe, prepared: Prepared) -> Room:
    """What this run may take of memory."""
    weights = prepared.source.weight_bytes
    room = find_room(recipe, weights)
    if room.weights is None:
        return room
    limit = "memory budget" if chosen_device(recipe.device) == "cpu" else "device memory"
    option, problem = (
        limit.replace(" ", "-"),
        f"the weights take {weights / 1e9:.1f} GB and do not fit into the {limit}",
    )
    trained = [name for name, method in recipe.repairs if method.num_sequences]
    if "repair" in prepared.uses and trained:
        raise InputError(f"{problem}, so {trained[0]} cannot train them; give a larger --{option}, or --repair refit")
    by_gradients = [name for name in recipe.metrics if METRICS.parse(name)[1].reads == "gradients"]
    if "calibration" in prepared.uses and by_gradients:
        raise InputError(
            f"{problem}, so {by_gradients[0]} has no gradients; give a larger --{option}, or a metric of the stream, "
            "such as cosine"
        )
    return room


@torch.no_grad()
def _require_finite(stream: DecoderStream, input_ids: torch.Tensor) -> None:
    """Raises InputError where a forward pass is not finite, before `prove`, which would blame the architecture for it.

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
