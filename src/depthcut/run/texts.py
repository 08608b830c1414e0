"""A stage of a run: its texts. What can be read is read before weights load, what the model writes is written after."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from depthcut.calibration import (
    Samples,
    join,
    parse_source,
    require_disjoint,
    sample_questions,
    sample_self,
    sample_text,
)
from depthcut.calibration.self_samples import BATCH_SIZE
from depthcut.model.heads import head_of
from depthcut.model.load import ModelSource
from depthcut.model.units import ModelSizes, sizes_from_config
from depthcut.process.journal import Journal
from depthcut.process.progress import progress
from depthcut.process.ranks import ALONE, Ranks, Shard
from depthcut.run.options import AUTO
from depthcut.run.recipe import Recipe
from depthcut.run.room import find_room
from depthcut.types import InputError

Use = Literal["calibration", "repair", "evaluation"]
"""What a text is for."""
USES: tuple[Use, ...] = ("calibration", "repair", "evaluation")

OWN, READ = "self", "stdlib"
"""What texts are by default: what the model writes, and what every Python carries."""

CHANCES, FLOAT_BYTES = 6, 4
"""Tensors of a number for every token there is that stand while the next one is drawn, and bytes of a number."""

WRITTEN = "written.jsonl"
"""What the model wrote, a line a batch: a killed run goes on from there, and people can read it."""


def settle_texts(
    recipe: Recipe, source: ModelSource, *, scores_alone: bool = False, device_bytes: float | None = None
) -> Recipe:
    """The recipe with its texts named: what the model writes where they are to decide much and it can write quickly.

    Args:
        scores_alone: whether one pass is all that is done with the text.
        device_bytes: of an accelerator other than the recipe's.
    """
    if AUTO not in (recipe.calibration, recipe.repair_source):
        return recipe
    one_pass = scores_alone or (not recipe.repairs and recipe.build_search().needs != "objective")
    writes = head_of(source.config) == "tokens"
    # Every token would bring in all weights anew.
    paged = find_room(recipe, source.weight_bytes, device_bytes).weights is not None
    chosen = READ if one_pass or paged or not writes else OWN
    if paged and writes and not one_pass:
        print(
            f"calibrating on {READ}: the weights do not fit into memory, so that the model would write slowly",
            file=sys.stderr,
        )
    named = {"calibration": chosen} if recipe.calibration == AUTO and not recipe.asks_questions else {}
    if recipe.repairs and (recipe.repair_text == AUTO or (recipe.asks_questions and not recipe.repair_text)):
        named["repair_text"] = chosen
    return recipe.model_copy(update=named)


def read_texts(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, uses: Collection[Use]
) -> tuple[dict[Use, Samples], dict[Use, Samples]]:
    """Tokenises the texts of the uses.

    Returns:
        The texts that are whole, and of those that the model has a part in what is not written by it.

    Raises:
        InputError: a text is too short, empty, or in another one of which nothing may be in it.
    """
    whole: dict[Use, Samples] = {}
    others: dict[Use, Samples] = {}
    for use in (use for use in USES if use in uses):
        if use == "evaluation":
            whole[use] = _evaluation_text(recipe, tokenizer, [*whole.values(), *others.values()])
        elif use == "calibration" and recipe.asks_questions:
            whole[use] = sample_questions(
                parse_source(recipe.calibration),
                tokenizer,
                num_questions=recipe.calibration_samples,
                max_length=recipe.calibration_length,
                seed=recipe.seed,
            )
        elif (read := _read(recipe, tokenizer, use)) is not None:
            (others if num_written(recipe, use) else whole)[use] = read
    return whole, others


def num_written(recipe: Recipe, use: Use) -> int:
    """How many sequences of a text to learn from the model writes."""
    if use == "evaluation" or (use == "calibration" and recipe.asks_questions):
        return 0
    return parse_source(_source(recipe, use)).num_written(_count(recipe, use))


def _source(recipe: Recipe, use: Use) -> str:
    text = recipe.calibration if use == "calibration" else recipe.repair_source
    return OWN if text == AUTO else text


def _count(recipe: Recipe, use: Use) -> int:
    return recipe.calibration_samples if use == "calibration" else recipe.num_repair_samples


def _read(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, use: Use) -> Samples | None:
    """What of a text to learn from is not written by the model; None where it writes all of it."""
    source = parse_source(_source(recipe, use)).read
    num_read = _count(recipe, use) - num_written(recipe, use)
    if source is None or not num_read:
        return None
    return sample_text(
        source,
        tokenizer,
        num_samples=num_read,
        length=recipe.calibration_length,
        seed=recipe.seed,
        purpose="calibration",
    )


def _evaluation_text(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, seen: Iterable[Samples]) -> Samples:
    """Text that measures, of documents that nothing else has seen."""
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
    return evaluation


def written_at_once(sizes: ModelSizes, vocabulary: int, length: int, budget: int) -> tuple[int, float]:
    """How many sequences the model writes together, and the bytes of their keys, values and chances.

    Args:
        budget: bytes that they may take.
    """
    of_one = length * sum(size.kv_bytes_per_token for size in sizes.units.values()) + CHANCES * FLOAT_BYTES * vocabulary
    at_once = max(1, min(BATCH_SIZE, int(budget // of_one)))
    return at_once, float(at_once * of_one)


def write_texts(
    recipe: Recipe,
    source: ModelSource,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    uses: Collection[Use],
    others: Mapping[Use, Samples],
    folder: Path | None,
    budget: int,
    ranks: Ranks = ALONE,
) -> dict[Use, Samples]:
    """The texts that the model writes or has a part in. All of them begin with the same sequences, written once.

    Args:
        uses: what text is missing for.
        others: what of these texts was read.
        folder: where what is written is kept for a run that is killed; nowhere where left out.
        budget: bytes that may be kept while the model writes.
        ranks: a shard finds there what was written before shards were merged.
    """
    counts = {use: num_written(recipe, use) for use in USES if use in uses}
    if not counts:
        return {}
    most, length = max(counts.values()), recipe.calibration_length
    settings = {
        "model": source.provenance.digest,
        "dtype": source.provenance.dtype,
        "num_samples": most,
        "length": length,
        "seed": recipe.seed,
    }
    journal = Journal(
        None if folder is None else folder / WRITTEN, settings, ranks if isinstance(ranks, Shard) else ALONE
    )

    def keep(written: torch.Tensor) -> None:
        journal.add({"ids": written.tolist(), "text": [tokenizer.decode(ids) for ids in written]})

    sizes = sizes_from_config(source.config, source.architecture, source.dtype)
    at_once, _ = written_at_once(sizes, source.config.get_text_config().vocab_size, length, budget)

    def write(count: int, known: Sequence[torch.Tensor], advance: Callable[[int], None]) -> Samples:
        given = {"num_samples": count, "length": length, "seed": recipe.seed}
        return sample_self(model, tokenizer, **given, batch_size=at_once, known=known, keep=keep, advance=advance)

    known = [torch.tensor(line["ids"], dtype=torch.int64) for line in journal.lines or journal.own]
    with progress("writing text, tokens", most * (length - 1)) as advance:
        written = write(most, known, advance).input_ids
    texts = {}
    for use, count in counts.items():
        text = write(count, [written[:count]], lambda _: None)
        texts[use] = text if use not in others else join(_source(recipe, use), [text, others[use]])
    return texts


def require_context(recipe: Recipe, source: ModelSource, uses: Collection[Use]) -> None:
    """Raises InputError where sequences are longer than what the model was made for; learned positions end there."""
    context = getattr(source.config.get_text_config(), "max_position_embeddings", None)
    lengths = {"calibration": recipe.calibration_length, "evaluation": recipe.evaluation_length}
    for purpose, length in lengths.items():
        if purpose in uses and context is not None and length > context:
            raise InputError(
                f"{purpose} sequences of {length} tokens are longer than the model's context of {context}; "
                f"give --{purpose}-length {context} or less"
            )
