"""A stage of a run: the pruned model and others beside the dense one, on text and by questions."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedModel

from depthcut.evaluation.compare import compare
from depthcut.evaluation.harness import model_digest
from depthcut.model.load import ModelSource, resolve
from depthcut.model.stream import DecoderStream
from depthcut.model.units import sizes_from_config
from depthcut.report import SEARCH
from depthcut.results import GenerationSample, Measurement
from depthcut.run.decoding import decoding_bytes
from depthcut.run.session import Loaded
from depthcut.types import Plan


def measure(
    loaded: Loaded, plan: Plan, pruned: PreTrainedModel, beside: Mapping[str, PreTrainedModel]
) -> tuple[Measurement, ...]:
    """Sizes, loss and speed of the dense model, of the pruned one and of the others, the memory of the first two while
    they decode, and the time of the search.

    Args:
        beside: other models by name.
    """
    others = {
        name: DecoderStream(model, loaded.source.architecture) for name, model in {"pruned": pruned, **beside}.items()
    }
    is_paged = loaded.stream.pager is not None
    if is_paged and loaded.recipe.speed:
        print("speed is not measured: the weights are paged, so that it would be the disk's", file=sys.stderr)
    measurements = compare(loaded.stream, others, loaded.evaluation, speed=loaded.recipe.speed and not is_paged)
    sizes = sizes_from_config(loaded.source.config, loaded.source.architecture, loaded.source.dtype)
    measurements += decoding_bytes(loaded.source, sizes, plan.removed)
    if plan.cost.seconds:
        measurements += [Measurement(name="search_seconds", value=plan.cost.seconds, unit="s", model=SEARCH)]
    return about(loaded.source, measurements)


def ask(
    loaded: Loaded, pruned: PreTrainedModel, folder: Path | None
) -> tuple[tuple[Measurement, ...], tuple[GenerationSample, ...]]:
    """The tasks and texts that both models are asked for.

    Args:
        folder: where the pruned model is written, by whose files a task's results are known again.
    """
    questions, source = loaded.questions, loaded.source
    if questions.suite is None and not questions.generation:
        return (), ()
    written = None if folder is None else resolve(str(folder), dtype=source.provenance.dtype)
    dense = questions.ask("dense", loaded.stream.model, loaded.tokenizer, model_digest(source))
    digest = None if written is None else model_digest(written)
    answers = questions.ask("pruned", pruned, loaded.tokenizer, digest)
    measurements = questions.compare(dense, answers, loaded.stream.model)
    return about(source, measurements), tuple(questions.samples(dense, answers))


def about(source: ModelSource, measurements: Sequence[Measurement]) -> tuple[Measurement, ...]:
    """The measurements with the model they are about, so that `results.json` can be read alone."""
    return tuple(measurement.model_copy(update={"source": str(source.provenance)}) for measurement in measurements)
