"""`loss`: the cross entropy of the next token (SLEB, arXiv 2402.09025; ShortGPT)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from depthcut.ablation.objectives import OBJECTIVES, Objective, Reference, nll


@dataclass(frozen=True)
class Loss(Objective):
    """Cross entropy of the next token."""

    @property
    def next_token(self) -> bool:
        return True

    @property
    def needs_dense(self) -> bool:
        return False

    def at_positions(self, reference: Reference, pruned: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nll(pruned.log_softmax(dim=-1), targets)


OBJECTIVES.register(
    "loss", Loss, summary="cross entropy of the next token, nats per token", source="SLEB, arXiv 2402.09025"
)
