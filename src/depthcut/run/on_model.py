"""The stages of a run as functions on a model in memory, with token ids in place of names of texts.

Each is the run's own stage on a `Session` that is made here. Nothing is written, and the model is left as it is but for
being put into eval mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from depthcut.calibration import Samples, parse_source, sample_text
from depthcut.evaluation.compare import compare as compare_streams
from depthcut.importance import check_metrics
from depthcut.model.in_memory import source_of
from depthcut.model.proof import prove
from depthcut.model.stream import DecoderStream
from depthcut.model.units import UnitNames, choose_units
from depthcut.repairs import check_repairs
from depthcut.results import Measurement, Repair
from depthcut.run.by_hand import plan_of_units
from depthcut.run.heads import settle_objective
from depthcut.run.plan import find_plan, recipe_of_scores, score_units
from depthcut.run.recipe import Recipe
from depthcut.run.repair import repair as repair_stage
from depthcut.run.room import find_room
from depthcut.run.session import PROBE_TOKENS, Session, pose_problem
from depthcut.run.texts import Use
from depthcut.surgery import apply
from depthcut.types import InputError, Plan, ScoreTable, Unit


def remove(model: PreTrainedModel, units: UnitNames, *, one_based: bool = False) -> PreTrainedModel:
    """The model without the given units.

    Args:
        model: an ordinary transformers model, left as it is. The result shares its tensors.
        units: blocks and sublayers: `"21-29"`, `[21, 22]`, `"17.attn,18.attn"`, `plan.removed`.
        one_based: whether blocks are counted from 1 in `units`.

    Returns:
        An ordinary transformers model in eval mode, with its configuration; it can be saved, trained and pushed.

    Raises:
        InputError: a unit is not of this model, or nothing would remain.
    """
    source = source_of(model)
    chosen = choose_units(units, source.architecture.units(source.provenance.num_blocks), one_based=one_based)
    cut = apply(model, source.architecture, chosen)
    cut.eval()
    return cut


def tokens(
    tokenizer: PreTrainedTokenizerBase, text: str = "stdlib", *, samples: int = 16, length: int = 512, seed: int = 0
) -> Tensor:
    """Token ids of a text, packed as a run packs its calibration text: int64, (samples, length).

    Args:
        text: SOURCE of the text: a file, a folder, a data set of the hub, `stdlib`.

    Raises:
        InputError: the text cannot be read or is too short.
    """
    return sample_text(
        parse_source(text), tokenizer, num_samples=samples, length=length, seed=seed, purpose="calibration"
    ).input_ids


def score(
    model: PreTrainedModel, tokenizer_or_ids: PreTrainedTokenizerBase | Tensor, text: str = "stdlib", **options: Any
) -> ScoreTable:
    """Scores every unit by every static metric. Costs one forward pass of the decoder.

    Args:
        tokenizer_or_ids: int64, (sequences, length) token ids without pads, or what makes them of `text` by `tokens`.
        options: fields of `Recipe` that scores read, for example `batch_size`, or `metric="taylor"` for one metric
            beside the pass.

    Returns:
        The scores of blocks and of sublayers, larger = more damage when removed, and UIDL's angular distances.

    Raises:
        InputError: an activation is not finite, or the metric is unknown or cannot be computed of this model.
    """
    ids = tokenizer_or_ids if isinstance(tokenizer_or_ids, Tensor) else tokens(tokenizer_or_ids, text)
    session = _session(model, {"calibration": ids}, **options)
    session = replace(session, recipe=recipe_of_scores(session.recipe))
    check_metrics(session.recipe.metrics, session.source.config)
    return score_units(session, None)[0]


def search(
    model: PreTrainedModel, ids: Tensor, *, budget: str | int | None = None, method: str = "greedy", **options: Any
) -> Plan:
    """Finds what to remove: a plan whose `removed` is what `remove` takes.

    Args:
        ids: int64, (sequences, length) token ids without pads, which decide.
        budget: a share (`"25%"`) or count of units to remove, or what may stay, `"parameters=0.8"` or `"kv=0.7"`.
        method: how units are chosen, with settings: `"greedy,strategy=exhaustive"`.
        options: further fields of `Recipe` that a search reads, for example `unit="block"` or `protect=["0", "29"]`.

    Raises:
        InputError: an option is unknown, or what it asks for cannot be done.
    """
    if budget is not None:
        options["budget" if "=" in str(budget) else "remove"] = str(budget)
    session = _session(model, {"calibration": ids}, method=method, **options)
    return find_plan(session, pose_problem(session.recipe, session.source), None)[1]


def repair(
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    ids: Tensor,
    method: str = "refit",
    *,
    removed: UnitNames | None = None,
    **options: Any,
) -> tuple[PreTrainedModel, tuple[Repair, ...]]:
    """Repairs a pruned model towards its dense one.

    Args:
        ids: int64, (sequences, length) token ids without pads: one sequence in sixteen, at least one, judges whether a
            repair is kept, and the others are fitted to.
        method: repairs in order: `"refit"`, `"lora,rank=8+refit"`.
        removed: what was taken out; found by the tensors that both models share where left out.
        options: further fields of `Recipe` that repairs read, for example `seed`.

    Returns:
        A repaired copy that shares the tensors it does not change, and what each repair did.

    Raises:
        InputError: the repair cannot be made on such a model, or what was removed is not known.
    """
    session = _session(dense, {"repair": ids}, repair=method, **options)
    architecture, config = session.source.architecture, session.source.config
    check_repairs(session.recipe.repairs, architecture, config)
    if len(ids) < 2:
        raise InputError("a repair is judged on text that it was not fitted to; give at least 2 sequences")
    names = _missing(session.stream, pruned) if removed is None else removed
    plan = plan_of_units(session.source, names)
    return repair_stage(session, plan, pruned, None)


def compare(
    dense: PreTrainedModel, pruned: PreTrainedModel, ids: Tensor, *, speed: bool = False
) -> tuple[Measurement, ...]:
    """Measures a pruned model beside its dense one: sizes, perplexity and KL, and speed where asked for.

    Of models with another head, the distance of what it gives in place of perplexity and KL.

    Args:
        ids: int64, (sequences, length) token ids without pads that nothing was fitted to.

    Returns:
        Measurements of the models `dense` and `pruned`, with standard errors over sequences.
    """
    session = _session(dense, {"evaluation": ids})
    other = DecoderStream(pruned, session.source.architecture)
    return tuple(compare_streams(session.stream, {"pruned": other}, session.evaluation, speed=speed))


def _session(model: PreTrainedModel, ids: Mapping[Use, Tensor], **options: Any) -> Session:
    """A session made of a model in memory and token ids."""
    source = source_of(model)
    recipe = Recipe.build(model=source.provenance.source, device=str(model.device), **options)
    recipe = settle_objective(recipe, source)
    stream = DecoderStream(model.eval(), source.architecture)
    texts = {use: _samples(model, of_use) for use, of_use in ids.items()}
    for text in texts.values():
        prove(stream, text.input_ids[:1, :PROBE_TOKENS])
    return Session(recipe, source, texts, stream, find_room(recipe, 0))


def _samples(model: PreTrainedModel, ids: Tensor) -> Samples:
    known: int = model.get_input_embeddings().weight.shape[0]  # type: ignore[assignment, index]
    if ids.dim() != 2 or ids.is_floating_point() or 0 in ids.shape:
        raise InputError(f"token ids are whole numbers of the shape (sequences, length), not {tuple(ids.shape)}")
    if not 0 <= int(ids.min()) <= int(ids.max()) < known:
        raise InputError(f"token ids from {ids.min()} to {ids.max()} were given, and the model knows 0 to {known - 1}")
    return Samples.packed(ids.cpu(), source="token ids", detail="given in Python", seed=0, digests=frozenset())


def _missing(dense: DecoderStream, pruned: PreTrainedModel) -> tuple[Unit, ...]:
    """The units of the dense model of which a pruned one holds no tensor.

    Raises:
        InputError: the models share none.
    """
    kept = {id(parameter) for parameter in pruned.parameters()}
    architecture = dense.architecture
    missing, found = [], 0
    for layer, block in enumerate(dense.blocks):
        for kind, of_kind in architecture.branches.items():
            branch = of_kind.of(block)
            weights = [parameter for name in branch.modules for parameter in getattr(block, name).parameters()]
            if any(id(parameter) in kept for parameter in weights):
                found += 1
            else:
                missing.append(Unit(layer, kind))
    if not found:
        raise InputError(
            "the pruned model shares no tensor with the dense one, so that what was removed is not known; give removed"
        )
    return tuple(missing)
