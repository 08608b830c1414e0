"""`angular`: the angle between two streams at each sequence's last token; between every two blocks it is UIDL's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from depthcut.importance import METRICS, EndMetric
from depthcut.model.device import widest_type


@dataclass(frozen=True)
class Angular(EndMetric):
    """arccos(cos) / pi. In float64: near 1 the arc cosine makes 3e-4 of float32's rounding."""

    def between(self, streams: torch.Tensor) -> torch.Tensor:
        unit_length = torch.nn.functional.normalize(streams.to(widest_type(streams.device)), dim=-1)
        return torch.einsum("psh,qsh->pqs", unit_length, unit_length).clamp(-1, 1).arccos() / math.pi


METRICS.register(
    "angular",
    Angular,
    summary="arccos(cos(before, after)) / pi at each sequence's last token, mean over sequences",
    source="UIDL, arXiv 2403.17887, section 3.2",
)
