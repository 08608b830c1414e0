"""Written models measured beside the dense one they were made from: the work of `depthcut eval`.

Everything is found and checked before weights load: the models, the texts, the tasks with their prompts. Then the dense
model and one pruned model at a time are in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from depthcut.evaluation.compare import compare
from depthcut.evaluation.engines import compare_engine_speed
from depthcut.evaluation.harness import model_digest
from depthcut.evaluation.questions import Answers, Questions
from depthcut.evaluation.speed import ROUNDS
from depthcut.model.heads import GIVES, head_of
from depthcut.model.load import ModelSource, resolve
from depthcut.model.stream import DecoderStream
from depthcut.process.progress import progress
from depthcut.results import GenerationSample, Measurement
from depthcut.run.heads import require_tokens
from depthcut.run.measure import about
from depthcut.run.recipe import Recipe
from depthcut.run.session import find_model, load, prepare
from depthcut.types import InputError


@dataclass(frozen=True)
class Measured:
    """What was found of one pruned model, called `pruned`, and of the dense one."""

    measurements: tuple[Measurement, ...]
    generation: tuple[GenerationSample, ...] = ()


def evaluate_models(
    recipe: Recipe, directories: Sequence[str], questions: Questions, texts: Sequence[str] = ()
) -> Iterator[tuple[str, Measured]]:
    """Measures written models beside their dense one, one directory after the other.

    Args:
        recipe: names the dense model, the device, the precision and the lengths of the texts.
        questions: what is asked beside the texts.
        texts: SOURCEs that perplexity and KL are measured on; the recipe's where none is given.

    Raises:
        InputError: the models do not belong together, or a text cannot be read; before weights load.
    """
    source = find_model(recipe)
    if questions.suite is not None or questions.generation:
        require_tokens(source, "tasks and generation are")
    decodes = head_of(source.config) == "tokens"
    pruned_sources = {directory: _pruned_source(recipe, source, directory) for directory in directories}
    recipes = [recipe.model_copy(update={"evaluation": text}) for text in texts or (recipe.evaluation,)]
    prepared = [prepare(each, source, ("evaluation",)) for each in recipes]
    stream = load(prepared[0]).stream
    evaluation, *further = [each.evaluation for each in prepared]
    dense = _ask("dense", stream, source, questions)
    for directory, pruned_source in pruned_sources.items():
        pruned_stream = DecoderStream(pruned_source.load_model(recipe.device), pruned_source.architecture)
        pruned = _ask(directory, pruned_stream, pruned_source, questions)
        reads = recipe.speed and not decodes
        measurements = compare(stream, {"pruned": pruned_stream}, evaluation, speed=reads, further=further)
        measurements += questions.compare(dense, pruned, stream.model)
        if recipe.speed and decodes:
            known = {measurement.name for measurement in measurements}
            timed = engine_speed(recipe, directory, "transformers")
            measurements += [measurement for measurement in timed if measurement.name not in known]
        yield directory, Measured(about(source, measurements), questions.samples(dense, pruned))


def engine_speed(recipe: Recipe, pruned: str, engine: str) -> list[Measurement]:
    """Speed and memory of the recipe's model and a pruned one in an engine, each in a fresh process.

    Raises:
        InputError: the engine is missing or cannot read them.
    """
    with progress(f"timing in {engine}", ROUNDS + 1) as advance:
        return compare_engine_speed(
            engine, {"dense": recipe.model, "pruned": pruned}, dtype=recipe.dtype, advance=advance
        )


def _pruned_source(recipe: Recipe, source: ModelSource, directory: str) -> ModelSource:
    pruned = resolve(directory, dtype=source.provenance.dtype, trust_remote_code=recipe.trust_remote_code)
    heads = [head_of(each.config) for each in (source, pruned)]
    if heads[0] != heads[1]:
        raise InputError(
            f"{directory} was not made from {recipe.model}: it {GIVES[heads[1]]}, and that {GIVES[heads[0]]}; name its "
            "dense model with --dense"
        )
    sizes = [config.get_text_config().vocab_size for config in (source.config, pruned.config)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"{directory} was not made from {recipe.model}: it knows {sizes[1]} tokens, not {sizes[0]}; name its dense "
            "model with --dense"
        )
    return pruned


def _ask(name: str, stream: DecoderStream, source: ModelSource, questions: Questions) -> Answers:
    digest = None if questions.suite is None else model_digest(source)
    return questions.ask(name, stream.model, source.load_tokenizer(), digest)
