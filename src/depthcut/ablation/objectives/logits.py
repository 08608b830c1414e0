"""`logit-angular`, `logit-l2`, `logit-l2-token`: how far the raw logits are, without a softmax.

The first two are FinerCut's (arXiv 2405.18218, section 3.2), the last is Deeper Look's (arXiv 2407.16286).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from depthcut.ablation.objectives import OBJECTIVES, Objective, Reference, dot


@dataclass(frozen=True)
class LogitAngular(Objective):
    """arccos of the raw logits' cosine, clamped to [0, 1]; not divided by pi."""

    @property
    def measure(self) -> str:
        return "radians"

    def reference(self, dense: torch.Tensor) -> Reference:
        return (torch.nn.functional.normalize(dense, dim=-1),)

    def at_positions(self, reference: Reference, pruned: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return dot(reference[0], torch.nn.functional.normalize(pruned, dim=-1)).clamp(0, 1).arccos()


@dataclass(frozen=True)
class LogitL2(Objective):
    """Distance of the raw logits.

    Attributes:
        per_token: mean over positions of the distance at each (Deeper Look), not the Frobenius norm over the whole
            sequence (FinerCut).
    """

    per_token: bool = False

    @property
    def measure(self) -> str:
        return "logits"

    @property
    def next_token(self) -> bool:
        return self.per_token

    def reference(self, dense: torch.Tensor) -> Reference:
        return (dense,)

    def at_positions(self, reference: Reference, pruned: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        distance: torch.Tensor = torch.linalg.vector_norm(pruned - reference[0], dim=-1)
        return distance if self.per_token else distance.square()

    def of_sequence(self, total: torch.Tensor, num_positions: torch.Tensor) -> torch.Tensor:
        return total / num_positions if self.per_token else total.sqrt()


OBJECTIVES.register(
    "logit-angular",
    LogitAngular,
    summary="angle between the raw logits, radians",
    source="FinerCut, arXiv 2405.18218, section 3.2",
)
OBJECTIVES.register(
    "logit-l2",
    LogitL2,
    summary="distance of the raw logits over a whole sequence",
    source="FinerCut, arXiv 2405.18218, section 3.2",
)
OBJECTIVES.register(
    "logit-l2-token",
    partial(LogitL2, True),
    summary="distance of the raw logits, mean over tokens",
    source="Deeper Look, arXiv 2407.16286",
)
