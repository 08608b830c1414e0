"""The pass that all metrics of the stream share, without the vocabulary projection, and what is asked for beside it.

Streams are captured at the blocks: what transformers returns as the last hidden state has gone through the final norm,
and scoring the last block on it is wrong. Nothing is kept of a sequence but sums, so memory does not grow with the
number of samples.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Literal

import torch

from depthcut.calibration import Samples
from depthcut.importance import METRICS, Change, EndMetric, ModelMetric, Stream, TokenMetric, metric_name
from depthcut.model.device import widest_type
from depthcut.model.stream import DecoderStream, Pass
from depthcut.types import InputError, Scores, Unit

MEASURED_STREAMS = 16
"""About how many streams' room measuring one takes."""


class _TokenSums:
    """Per sequence and unit: sums over its tokens of each token metric. Token values float32, sums float64."""

    def __init__(self, metrics: Mapping[str, TokenMetric]) -> None:
        self.metrics = metrics
        self.sums: dict[Unit | int, list[torch.Tensor]] = {}

    def add(self, unit: Unit | int, before: Stream, after: Stream, tokens: torch.Tensor) -> None:
        """Adds one batch.

        Args:
            unit: a sublayer, or a block's index.
            tokens: (sequences, length) bool, False at pads.
        """
        change = Change(before, after)
        values = torch.stack([metric.at_tokens(change) for metric in self.metrics.values()])
        sums = torch.where(tokens.to(values.device), values.to(widest_type(values.device)), 0.0).sum(dim=-1)
        self.sums.setdefault(unit, []).append(sums)

    def scores(self, num_tokens: torch.Tensor) -> Iterable[Scores]:
        """Means over all tokens, with standard errors over sequences.

        Args:
            num_tokens: (sequences,), tokens of each sequence.
        """
        # Only now, since to look at each would wait for the device each time.
        whole = {unit: torch.cat(sums, dim=-1).to(num_tokens.device) for unit, sums in self.sums.items()}
        finite = torch.stack([sums.isfinite().all() for sums in whole.values()]).tolist()
        for unit, is_finite in zip(whole, finite, strict=True):
            if not is_finite:
                where = f"block {unit}" if isinstance(unit, int) else f"{unit}"
                raise InputError(
                    f"the activations at {where} are not finite (NaN or infinite, or a stream of zeros); "
                    "check the weights, or load the model with --dtype float32"
                )
        for kind in (int, Unit):
            units = [unit for unit in self.sums if isinstance(unit, kind)]
            table = torch.stack([whole[unit] for unit in units])  # units, metrics, sequences
            means = table.sum(dim=-1) / num_tokens.sum()
            errors = _standard_errors(table / num_tokens)
            for column, name in enumerate(self.metrics):
                yield _scores(name, units, means[:, column], errors[:, column] if len(num_tokens) > 1 else None)


def _standard_errors(values: torch.Tensor) -> torch.Tensor:
    """Of the mean over the last dimension."""
    return values.std(dim=-1, unbiased=values.shape[-1] > 1) / math.sqrt(values.shape[-1])


def _scores(
    name: str, units: Sequence[Unit | int | str], values: torch.Tensor, errors: torch.Tensor | None = None
) -> Scores:
    """What is kept of a metric; units are all blocks or all sublayers."""
    unit: Literal["block", "sublayer"] = "sublayer" if "." in str(units[0]) else "block"
    return Scores(
        metric=metric_name(name, unit),
        unit=unit,
        measure=METRICS.find(METRICS.parse(name)[0]).summary,
        values=_by_name(units, values),
        standard_errors=None if errors is None else _by_name(units, errors),
    )


def _by_name(units: Sequence[Unit | int | str], values: torch.Tensor) -> dict[str, float]:
    return {str(unit): value for unit, value in zip(units, values.tolist(), strict=True)}


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
        self._recent: list[Stream] = []

    def __call__(self, unit: Unit | int, before: torch.Tensor, after: torch.Tensor) -> None:
        self.token_sums.add(unit, self._measured(before), self._measured(after), self.tokens)
        # Of a model on several devices the streams are, too; what is kept lies where the tokens do.
        places = self._sequences.to(before.device), self._last_token.to(before.device)
        ends = torch.stack([stream.to(before.device)[places] for stream in (before, after)]).to(self.tokens.device)
        (self.block_ends if isinstance(unit, int) else self.sublayer_ends).append(ends)

    def _measured(self, captured: torch.Tensor) -> Stream:
        """The stream with its norms; one that a neighbouring unit shares is measured once."""
        for known in self._recent:
            if known.captured is captured:
                return known
        self._recent.append(Stream(captured))
        del self._recent[:-4]
        return self._recent[-1]


@torch.no_grad()
def static_scores(
    stream: DecoderStream,
    samples: Samples,
    batch_size: int = 4,
    advance: Callable[[int], None] = lambda _: None,
    also: Collection[str] = (),
) -> tuple[list[Scores], tuple[tuple[float, ...], ...]]:
    """Every metric of the stream for blocks and for sublayers, and the whole table of angular distances.

    Costs one forward pass over the samples without the vocabulary projection, and for each metric beside it that is no
    function of the stream what its file says. Pads are left out; the last token of a sequence is its last one that is
    no pad.

    Args:
        batch_size: sequences run together; changes nothing but speed and memory.
        advance: called with the number of sequences after each batch.
        also: metrics to compute beside those, by name with settings.

    Returns:
        The scores, and the angular table d(l, n): row l holds n = 1 .. L - l.

    Raises:
        InputError: an activation is not finite, or a metric is unknown.
    """
    of_stream = [entry.name for entry in METRICS if entry.make().reads == "stream"]
    # By what is computed, so that a formula with two names is computed once.
    wanted = {METRICS.parse(text)[1]: text for text in (*of_stream, *also)}
    num_blocks = len(stream.blocks)
    token_sums = _TokenSums({name: metric for metric, name in wanted.items() if isinstance(metric, TokenMetric)})
    num_tokens: list[torch.Tensor] = []
    at_ends = {name: metric for metric, name in wanted.items() if isinstance(metric, EndMetric)}
    between: dict[tuple[str, str], list[torch.Tensor]] = defaultdict(list)

    rows = [slice(begin, begin + batch_size) for begin in range(0, len(samples.input_ids), batch_size)]
    for together in stream.together(len(rows), MEASURED_STREAMS * stream.stream_bytes(samples.input_ids[rows[0]])):
        batches = [stream.prepare(samples.input_ids[rows[i]], samples.attention_mask[rows[i]]) for i in together]
        visitors = [_BatchVisitor(token_sums, batch.token_mask) for batch in batches]
        stream.run_together([Pass(batch, visit=visit) for batch, visit in zip(batches, visitors, strict=True)])
        for visitor in visitors:
            num_tokens.append(visitor.tokens.sum(dim=-1))
            boundaries = torch.stack([visitor.block_ends[0][0], *(ends[1] for ends in visitor.block_ends)])
            for name, metric in at_ends.items():
                between[name, "block"].append(metric.between(boundaries))
                of_each = [metric.between(ends)[0, 1] for ends in visitor.sublayer_ends]
                between[name, "sublayer"].append(torch.stack(of_each))
            advance(len(visitor.tokens))

    scores = list(token_sums.scores(torch.cat(num_tokens)))
    for name in at_ends:
        blocks = torch.cat(between[name, "block"], dim=-1)
        by_block = torch.stack([blocks[layer, layer + 1] for layer in range(num_blocks)])
        for units, values in (
            (range(num_blocks), by_block),
            (stream.units, torch.cat(between[name, "sublayer"], dim=-1)),
        ):
            errors = _standard_errors(values) if values.shape[-1] > 1 else None
            scores.append(_scores(name, units, values.mean(dim=-1), errors))
    for other, name in wanted.items():
        if isinstance(other, ModelMetric):
            scores += _by_kind(name, other.by_unit(stream, samples, advance))
    table = torch.cat(between["angular", "block"], dim=-1).mean(dim=-1)
    angular = tuple(tuple(row[layer + 1 :]) for layer, row in enumerate(table.tolist()[:num_blocks]))
    return scores, angular


def _by_kind(name: str, values: Mapping[str, float]) -> list[Scores]:
    """Blocks apart from sublayers. Raises InputError where a number is not finite."""
    for unit, value in values.items():
        if not math.isfinite(value):
            raise InputError(
                f"the metric {name} is not finite at {unit}; check the weights, or load the model with --dtype float32"
            )
    groups = [[unit for unit in values if ("." in unit) == is_sublayer] for is_sublayer in (False, True)]
    return [_scores(name, units, torch.tensor([values[u] for u in units], dtype=torch.float64)) for units in groups]
