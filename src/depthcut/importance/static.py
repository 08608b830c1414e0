"""All metrics that one forward pass gives: what a unit does to the residual stream that passes it.

Sources: Block Influence and relative magnitude, ShortGPT (arXiv 2403.03853, section 3.1 and its baselines); relative
L1 and L2 and the cosine of sublayers, Deeper Look (arXiv 2407.16286, section 3); angular distance for every window of
blocks, UIDL (arXiv 2403.17887, section 3.2). Definitions stand beside `METRICS`.

One pass over the decoder serves them all, without its vocabulary projection. Streams are captured at the blocks: what
transformers returns as the last hidden state has gone through the final norm, and scoring the last block on it is
wrong. Nothing is kept of a sequence but sums, so memory does not grow with the number of samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from depthcut.calibration import Samples
from depthcut.model.stream import DecoderStream, Run
from depthcut.types import InputError, Scores, Unit

METRICS: dict[str, str] = {
    "cosine": "1 - cos(before, after), mean over tokens",
    "relative-l1": "|after - before|_1 / |before|_1, mean over tokens",
    "relative-l2": "|after - before|_2 / |before|_2, mean over tokens",
    "relative-magnitude": "|after - before|_2 / |after|_2, mean over tokens",
    "angular": "arccos(cos(before, after)) / pi at each sequence's last token, mean over sequences",
}
"""Every static metric with what it computes. For whole blocks `cosine` is ShortGPT's `block-influence`."""

MEASURED_STREAMS = 16
"""About how many streams' room measuring one takes."""

BLOCK_INFLUENCE = "block-influence"
TOKEN_METRICS = ("cosine", "relative-l1", "relative-l2", "relative-magnitude")


def metric_name(metric: str, unit: str) -> str:
    """The name under which a metric is kept for blocks or sublayers: one formula, two papers' names."""
    if metric in ("cosine", BLOCK_INFLUENCE):
        return BLOCK_INFLUENCE if unit == "block" else "cosine"
    return metric


class _Stream:
    """One captured stream in float32, with the norms that two neighbouring units share."""

    def __init__(self, captured: torch.Tensor) -> None:
        self.captured = captured
        self.values = captured.float()
        self.l1 = torch.linalg.vector_norm(self.values, ord=1, dim=-1)
        self.l2 = torch.linalg.vector_norm(self.values, dim=-1)


class _TokenSums:
    """Per sequence and unit: sums over its tokens of each token metric. Token values float32, sums float64."""

    def __init__(self) -> None:
        self.sums: dict[Unit | int, list[torch.Tensor]] = {}

    def add(self, unit: Unit | int, before: _Stream, after: _Stream, tokens: torch.Tensor) -> None:
        """Adds one batch.

        Args:
            unit: a sublayer, or a block's index.
            tokens: (sequences, length) bool, False at pads.
        """
        update = after.values - before.values
        update_l2 = torch.linalg.vector_norm(update, dim=-1)
        cosine = torch.linalg.vecdot(before.values, after.values) / (before.l2 * after.l2)
        values = torch.stack(
            [
                1 - cosine.clamp(-1, 1),
                torch.linalg.vector_norm(update, ord=1, dim=-1) / before.l1,
                update_l2 / before.l2,
                update_l2 / after.l2,
            ]
        )
        sums = torch.where(tokens, values.double(), 0.0).sum(dim=-1)
        if not bool(torch.isfinite(sums).all()):
            where = f"block {unit}" if isinstance(unit, int) else f"{unit}"
            raise InputError(
                f"the activations at {where} are not finite (NaN or infinite, or a stream of zeros); "
                "check the weights, or load the model with --dtype float32"
            )
        self.sums.setdefault(unit, []).append(sums)

    def scores(self, num_tokens: torch.Tensor) -> list[Scores]:
        """Means over all tokens, with standard errors over sequences.

        Args:
            num_tokens: (sequences,), tokens of each sequence.
        """
        result = []
        for unit_name, kind in (("block", int), ("sublayer", Unit)):
            units = [unit for unit in self.sums if isinstance(unit, kind)]
            table = torch.stack([torch.cat(self.sums[unit], dim=-1) for unit in units])  # units, metrics, sequences
            means = table.sum(dim=-1) / num_tokens.sum()
            errors = _standard_errors(table / num_tokens)
            for column, metric in enumerate(TOKEN_METRICS):
                result.append(
                    Scores(
                        metric=metric_name(metric, unit_name),
                        unit=unit_name,  # type: ignore[arg-type]
                        measure=METRICS[metric],
                        values=_by_name(units, means[:, column]),
                        standard_errors=_by_name(units, errors[:, column]) if len(num_tokens) > 1 else None,
                    )
                )
        return result


def _standard_errors(values: torch.Tensor) -> torch.Tensor:
    """Of the mean over the last dimension."""
    return values.std(dim=-1, unbiased=values.shape[-1] > 1) / math.sqrt(values.shape[-1])


def _by_name(units: list[Unit | int], values: torch.Tensor) -> dict[str, float]:
    return {str(unit): float(value) for unit, value in zip(units, values, strict=True)}


def _angular(streams: torch.Tensor) -> torch.Tensor:
    """arccos(cos) / pi between every two streams: (positions, sequences, hidden) -> (positions, positions, sequences).

    In float64: near 1 the arc cosine makes 3e-4 of float32's rounding.
    """
    unit_length = torch.nn.functional.normalize(streams.double(), dim=-1)
    return torch.einsum("psh,qsh->pqs", unit_length, unit_length).clamp(-1, 1).arccos() / math.pi


class _BatchVisitor:
    """What is gathered while one batch runs: token sums as they come, and the streams at each sequence's last token.

    Attributes:
        block_ends: (2, sequences, hidden) before and after each block, in order.
        sublayer_ends: the same for each sublayer.
    """

    def __init__(self, token_sums: _TokenSums, tokens: torch.Tensor) -> None:
        self.token_sums = token_sums
        self.tokens = tokens
        self.block_ends: list[torch.Tensor] = []
        self.sublayer_ends: list[torch.Tensor] = []
        self._last_token = (tokens * torch.arange(1, tokens.shape[1] + 1, device=tokens.device)).argmax(dim=-1)
        self._sequences = torch.arange(len(tokens), device=tokens.device)
        self._recent: list[_Stream] = []

    def __call__(self, unit: Unit | int, before: torch.Tensor, after: torch.Tensor) -> None:
        self.token_sums.add(unit, self._measured(before), self._measured(after), self.tokens)
        ends = torch.stack([stream[self._sequences, self._last_token] for stream in (before, after)])
        (self.block_ends if isinstance(unit, int) else self.sublayer_ends).append(ends)

    def _measured(self, captured: torch.Tensor) -> _Stream:
        """The stream with its norms; one that a neighbouring unit shares is measured once."""
        for known in self._recent:
            if known.captured is captured:
                return known
        self._recent.append(_Stream(captured))
        del self._recent[:-4]
        return self._recent[-1]


@torch.no_grad()
def static_scores(
    stream: DecoderStream, samples: Samples, batch_size: int = 4, advance: Callable[[int], None] = lambda _: None
) -> tuple[list[Scores], tuple[tuple[float, ...], ...]]:
    """Every metric of `METRICS` for blocks and for sublayers, and the whole angular table.

    Costs one forward pass over the samples without the vocabulary projection. Pads are left out; the last token of a
    sequence is its last one that is no pad.

    Args:
        batch_size: sequences run together; changes nothing but speed and memory.
        advance: called with the number of sequences after each batch.

    Returns:
        The scores, and the angular table d(l, n): row l holds n = 1 .. L - l.

    Raises:
        InputError: an activation is not finite.
    """
    num_blocks = len(stream.blocks)
    token_sums = _TokenSums()
    num_tokens: list[torch.Tensor] = []
    between_blocks: list[torch.Tensor] = []
    between_sublayers: list[torch.Tensor] = []

    rows = [slice(begin, begin + batch_size) for begin in range(0, len(samples.input_ids), batch_size)]
    for together in stream.together(len(rows), MEASURED_STREAMS * stream.stream_bytes(samples.input_ids[rows[0]])):
        batches = [stream.prepare(samples.input_ids[rows[i]], samples.attention_mask[rows[i]]) for i in together]
        visitors = [_BatchVisitor(token_sums, batch.token_mask) for batch in batches]
        stream.run_together([Run(batch, visit=visit) for batch, visit in zip(batches, visitors, strict=True)])
        for visitor in visitors:
            num_tokens.append(visitor.tokens.sum(dim=-1))
            boundaries = torch.stack([visitor.block_ends[0][0], *(ends[1] for ends in visitor.block_ends)])
            between_blocks.append(_angular(boundaries))
            between_sublayers.append(torch.stack([_angular(ends)[0, 1] for ends in visitor.sublayer_ends]))
            advance(len(visitor.tokens))

    scores = token_sums.scores(torch.cat(num_tokens))
    blocks = torch.cat(between_blocks, dim=-1)
    by_block = torch.stack([blocks[layer, layer + 1] for layer in range(num_blocks)])
    by_sublayer = torch.cat(between_sublayers, dim=-1)
    for unit_name, units, values in (
        ("block", list(range(num_blocks)), by_block),
        ("sublayer", list(stream.units), by_sublayer),
    ):
        scores.append(
            Scores(
                metric="angular",
                unit=unit_name,  # type: ignore[arg-type]
                measure=METRICS["angular"],
                values=_by_name(units, values.mean(dim=-1)),  # type: ignore[arg-type]
                standard_errors=_by_name(units, _standard_errors(values)) if values.shape[-1] > 1 else None,  # type: ignore[arg-type]
            )
        )
    table = blocks.mean(dim=-1)
    angular = tuple(tuple(float(d) for d in table[layer, layer + 1 :]) for layer in range(num_blocks))
    return scores, angular
