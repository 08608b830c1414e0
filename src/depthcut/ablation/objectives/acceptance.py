"""`acceptance`: how often the dense model would reject the pruned one's drafts (Leviathan et al., arXiv 2211.17192)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from depthcut.ablation.objectives import OBJECTIVES, Objective, Reference


@dataclass(frozen=True)
class Acceptance(Objective):
    """The chance that a token drawn from the pruned model is rejected: 1 - sum of min(P, Q), theorem 3.5."""

    @property
    def measure(self) -> str:
        return "share of tokens rejected"

    def reference(self, dense: torch.Tensor) -> Reference:
        return (dense.softmax(dim=-1),)

    def at_positions(self, reference: Reference, pruned: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return 1 - torch.minimum(reference[0], pruned.softmax(dim=-1)).sum(dim=-1)


OBJECTIVES.register(
    "acceptance",
    Acceptance,
    summary="share of drafted tokens that the dense model would reject",
    source="arXiv 2211.17192",
)
