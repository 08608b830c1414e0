"""Everything that is measured of a pruned model beside its dense one and others: size, cache, language and speed."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence

from transformers import PreTrainedModel

from depthcut.calibration import Samples
from depthcut.evaluation.draft import with_drafts
from depthcut.evaluation.heads import compare_heads
from depthcut.evaluation.ideal import Work, with_ideals, work_of
from depthcut.evaluation.language import compare_language
from depthcut.evaluation.speed import DECODE_TOKENS, ROUNDS, compare_speed, kv_bytes_per_token, prompt_length
from depthcut.model.device import device_label
from depthcut.model.quantisation import num_elements
from depthcut.model.stream import DecoderStream
from depthcut.model.units import measure_sizes
from depthcut.process.progress import progress
from depthcut.results import Measurement

CACHE_TOKENS = 16


def software() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    packages = ("depthcut", "torch", "transformers")
    return {name: importlib.metadata.version(name) for name in packages} | {"python": platform.python_version()}


def compare(
    dense: DecoderStream,
    others: Mapping[str, DecoderStream],
    evaluation: Samples,
    *,
    speed: bool,
    further: Sequence[Samples] = (),
) -> list[Measurement]:
    """Measures the models on the same texts in one run.

    Args:
        others: by name; the first is the one that is timed beside the dense model.
        speed: whether to time prompt reading and decoding too.
        further: more texts for perplexity and KL.

    Returns:
        For every model parameters, blocks, KV bytes per token, perplexity and loss; KL to dense for the others; speeds,
        speed-up and its ideal for the timed ones. Where models do not predict tokens, of the others the distance of
        what their head gives, in place of perplexity, loss and KL, and the speed of reading alone.
    """
    streams = {"dense": dense, **others}
    measurements = []
    for name, stream in streams.items():
        parameters = sum(num_elements(parameter) for parameter in stream.model.parameters())
        kv_bytes = kv_bytes_per_token(stream.model, evaluation.input_ids[:1, :CACHE_TOKENS])
        for measure, value, unit in (
            ("parameters", parameters, "parameters"),
            ("blocks", len(stream.blocks), "blocks"),
            ("kv_bytes_per_token", kv_bytes, "bytes"),
        ):
            measurements.append(Measurement(name=measure, value=value, unit=unit, model=name))
    for samples in (evaluation, *further):
        with progress("evaluating", len(samples.input_ids)) as advance:
            compare_output = compare_language if dense.head == "tokens" else compare_heads
            measurements += compare_output(dense, others, samples, advance=advance)
    if speed:
        timed = dict(list(streams.items())[:2])
        models = {name: stream.model for name, stream in timed.items()}
        decoded = DECODE_TOKENS if dense.head == "tokens" else 0
        with progress("timing", ROUNDS + 1) as advance:
            measured = compare_speed(models, evaluation.input_ids[:1], decode_tokens=decoded, advance=advance)
        works = {name: _work(stream) for name, stream in timed.items()}
        length = prompt_length(dense.model, evaluation.input_ids, decoded)
        measurements += with_ideals(measured, works, length, decoded)
        measurements = with_drafts(measurements)
    return stamped(measurements, dense.model)


def stamped(measurements: Sequence[Measurement], model: PreTrainedModel) -> list[Measurement]:
    """The measurements with the software and the device that they were made with."""
    stamp = {
        "software": " ".join(f"{name} {version}" for name, version in software().items()),
        "device": device_label(model.device),
    }
    return [measurement.model_copy(update=stamp) for measurement in measurements]


def _work(stream: DecoderStream) -> Work:
    sizes = measure_sizes(stream.model, stream.architecture)
    return work_of(stream.model.config, sizes, stream.model.dtype.itemsize)
