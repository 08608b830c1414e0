"""How much units matter, by one file a metric: what they do to the stream, what their weights are, what the loss says.

A metric of the stream is one number a token, or an angle at the last token; all of them share one pass (`static.py`).
Any other is computed by itself, and only where it is asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import ClassVar, Literal

import torch
from transformers import PreTrainedConfig

from depthcut.calibration import Samples
from depthcut.model.heads import GIVES, head_of
from depthcut.model.quantisation import quantisation
from depthcut.model.stream import DecoderStream
from depthcut.registry import Registry
from depthcut.types import InputError, Unit

BLOCK_INFLUENCE = "block-influence"


class Stream:
    """One captured stream, (sequences, length, hidden), in float32; norms are computed once."""

    def __init__(self, captured: torch.Tensor) -> None:
        self.captured = captured
        self.values = captured.float()

    @cached_property
    def l1(self) -> torch.Tensor:
        """(sequences, length)."""
        return torch.linalg.vector_norm(self.values, ord=1, dim=-1)  # type: ignore[no-any-return]

    @cached_property
    def l2(self) -> torch.Tensor:
        """(sequences, length)."""
        return torch.linalg.vector_norm(self.values, dim=-1)  # type: ignore[no-any-return]


class Change:
    """What a unit does to the stream: before it, after it, and the difference."""

    def __init__(self, before: Stream, after: Stream) -> None:
        self.before, self.after = before, after

    @cached_property
    def update(self) -> Stream:
        """What the unit adds."""
        return Stream(self.after.values - self.before.values)


class TokenMetric(ABC):
    """One number a token, of which the mean over all tokens counts; a frozen dataclass whose fields are its settings.

    Attributes:
        reads: what it is a function of.
    """

    reads: ClassVar[Literal["stream"]] = "stream"

    @abstractmethod
    def at_tokens(self, change: Change) -> torch.Tensor:
        """(sequences, length); larger = more damage when the unit is removed."""


class EndMetric(ABC):
    """One number of two streams at each sequence's last token, of which the mean over sequences counts."""

    reads: ClassVar[Literal["stream"]] = "stream"

    @abstractmethod
    def between(self, streams: torch.Tensor) -> torch.Tensor:
        """Between every two streams: (positions, sequences, hidden) -> (positions, positions, sequences), float64."""


class ModelMetric(ABC):
    """What is no function of the stream: computed by itself, where it is asked for.

    Attributes:
        reads: the weights, or the loss's gradients by them, which take about three forward passes. Neither can be of
            quantised weights, and gradients not of weights that are read as layers run.
    """

    reads: ClassVar[Literal["weights", "gradients"]]

    @abstractmethod
    def by_unit(self, stream: DecoderStream, samples: Samples, advance: Callable[[int], None]) -> Mapping[str, float]:
        """Of every block (`17`) and every sublayer (`17.attn`); larger = more damage when removed.

        Args:
            advance: called with the forward passes, by sequences, that were done since the last call.
        """


Metric = TokenMetric | EndMetric | ModelMetric

METRICS: Registry[Metric] = Registry("metric", "depthcut.importance", "depthcut.metrics")


def metric_name(metric: str, unit: str) -> str:
    """The name under which a metric is kept for blocks or sublayers: one formula, two papers' names."""
    if metric in ("cosine", BLOCK_INFLUENCE):
        return BLOCK_INFLUENCE if unit == "block" else "cosine"
    return METRICS.canonical(metric)


def passes_of(metric: str) -> int:
    """Forward passes of the decoder that a metric takes beside the one that those of the stream share."""
    return 3 if METRICS.parse(metric)[1].reads == "gradients" else 0


def check_metrics(metrics: Collection[str], config: PreTrainedConfig) -> None:
    """Raises InputError where a model does not have what a metric reads; needs no weights."""
    stored, head = quantisation(config), head_of(config)
    for metric in metrics:
        if head != "tokens" and METRICS.parse(metric)[1].reads == "gradients":
            raise InputError(
                f"the metric {metric} reads gradients of the next token's loss, and this model {GIVES[head]}; give a "
                "metric of the stream, such as cosine"
            )
        if stored is not None and METRICS.parse(metric)[1].reads != "stream":
            raise InputError(
                f"the metric {metric} reads weights, which this model stores as {stored}; score the unquantised model, "
                "or give a metric of the stream, such as cosine"
            )


def of_all(values: Mapping[Unit, float]) -> dict[str, float]:
    """Blocks and sublayers by name, a block's number being the sum over its sublayers."""
    layers = sorted({unit.layer for unit in values})
    blocks = {str(layer): sum(value for unit, value in values.items() if unit.layer == layer) for layer in layers}
    return blocks | {str(unit): value for unit, value in values.items()}
