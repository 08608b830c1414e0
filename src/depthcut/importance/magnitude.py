"""`magnitude`: how large a unit's weights are, a baseline that looks at no data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from depthcut.calibration import Samples
from depthcut.importance import METRICS, ModelMetric, of_all
from depthcut.model.stream import DecoderStream
from depthcut.model.units import unit_parameters


@dataclass(frozen=True)
class Magnitude(ModelMetric):
    """Sum of |w|^power over a unit's weights, its own norms and biases included; costs no forward pass.

    Attributes:
        power: of each weight, 1 or 2.
    """

    power: Literal[1, 2] = 1
    reads: ClassVar[Literal["weights"]] = "weights"

    def by_unit(self, stream: DecoderStream, samples: Samples, advance: Callable[[int], None]) -> Mapping[str, float]:
        return of_all(
            {
                unit: sum(float(weight.detach().float().abs().pow(self.power).sum()) for weight in weights)
                for unit, weights in unit_parameters(stream.model, stream.architecture).items()
            }
        )


METRICS.register(
    "magnitude",
    Magnitude,
    summary="sum of |w| over a unit's weights",
    source="Shortened LLaMA's baseline, arXiv 2402.02834",
)
