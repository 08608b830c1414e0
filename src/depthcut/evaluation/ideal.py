"""The speed-up that a removal would give on a machine that does nothing but the model's arithmetic and reading.

Reading a prompt is bound by arithmetic, so the ideal is the ratio of floating-point operations; decoding is bound by
reading weights and cache, so it is the ratio of bytes. The vocabulary projection and the cache stay however many
blocks go, and count on both sides: removing 8 of 30 blocks is not 30/22. A measured speed-up can exceed the ideal
where each block costs time beside its arithmetic (Python between small operations, for example).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig

from depthcut.evaluation.speed import DECODE_TOKENS, phases
from depthcut.model.flops import flops_per_pair
from depthcut.model.heads import head_of
from depthcut.model.units import ModelSizes
from depthcut.results import Measurement
from depthcut.types import Unit


@dataclass(frozen=True)
class Work:
    """What a model must do at least.

    Attributes:
        token_flops: multiplications and additions with the weights of the blocks, a token of the prompt.
        attended_flops: additional ones in attention, a pair of a token and one that it looks at.
        last_flops: of the vocabulary projection, once a prompt; 0 where there is none.
        weight_bytes: read for every decoded token.
        kv_bytes: read for every decoded token and token of context.
    """

    token_flops: float
    attended_flops: float
    last_flops: float
    weight_bytes: float
    kv_bytes: float

    def prompt_flops(self, length: int) -> float:
        """Floating-point operations of reading a prompt; each token looks at itself and those before it."""
        return self.token_flops * length + self.attended_flops * length * (length + 1) / 2 + self.last_flops

    def decode_bytes(self, context: float) -> float:
        """Bytes read for one token after a context of that many."""
        return self.weight_bytes + self.kv_bytes * context


def work_of(config: PreTrainedConfig, sizes: ModelSizes, itemsize: int, removed: Collection[Unit] = ()) -> Work:
    """The work of a model by its configuration and the sizes of its units.

    Sliding windows are not taken into account: contexts are taken as shorter than them.

    Args:
        itemsize: bytes of a weight.
        removed: units that the model lacks though `sizes` has them.
    """
    predicts_tokens = head_of(config) == "tokens"
    config = config.get_text_config(decoder=True)
    kept = {unit: size for unit, size in sizes.units.items() if size.parameters and unit not in removed}
    num_attentions = sum(unit.kind == "attn" for unit in kept)
    parameters = sum(size.parameters for size in kept.values())
    vocabulary = config.vocab_size * config.hidden_size
    return Work(
        token_flops=2 * parameters,
        attended_flops=num_attentions * flops_per_pair(config),
        last_flops=2 * vocabulary * predicts_tokens,
        weight_bytes=(parameters + vocabulary) * itemsize,
        kv_bytes=sum(size.kv_bytes_per_token for size in kept.values()),
    )


def with_ideals(
    measured: Sequence[Measurement], works: Mapping[str, Work], prompt_tokens: int, decode_tokens: int = DECODE_TOKENS
) -> list[Measurement]:
    """What `time_in_turn` measured, and behind each phase its ideal speed-ups.

    Args:
        works: by model, the reference first.
        prompt_tokens: of the long prompt.
    """
    reference, *others = works
    rows = []
    for phase, length in phases(prompt_tokens, decode_tokens).items():
        rows += [measurement for measurement in measured if measurement.name.startswith(f"{phase}_")]
        for name in others:
            before, after = (
                work.prompt_flops(length) if phase == "prompt" else work.decode_bytes(length + decode_tokens / 2)
                for work in (works[reference], works[name])
            )
            counted = "FLOPs" if phase == "prompt" else "bytes read"
            rows.append(
                Measurement(
                    name=f"{phase}_ideal_speedup",
                    value=before / after,
                    unit="ratio",
                    model=name,
                    data=f"{counted}, prompt of {length}" + (f", {decode_tokens} decoded" if decode_tokens else ""),
                )
            )
    return rows
