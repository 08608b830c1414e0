"""`kl`: the divergence of the pruned model's distribution from the dense one's (EvoPress, arXiv 2410.14649)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from depthcut.ablation.objectives import OBJECTIVES, Objective, Reference, dot


@dataclass(frozen=True)
class KL(Objective):
    """KL(P_dense || P_pruned)."""

    def reference(self, dense: torch.Tensor) -> Reference:
        return self.reference_of(dense.log_softmax(dim=-1))

    def at_positions(self, reference: Reference, pruned: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.of_log_probabilities(reference, pruned.log_softmax(dim=-1))

    def reference_of(self, log_p: torch.Tensor) -> Reference:
        """The reference from the dense model's log-probabilities, for who has them: P, and the sum of P log P."""
        p = log_p.exp()
        return p, dot(p, log_p)

    def of_log_probabilities(self, reference: Reference, log_q: torch.Tensor) -> torch.Tensor:
        """One number a position from the pruned model's log-probabilities, (positions, vocabulary)."""
        p, negative_entropy = reference
        return negative_entropy - dot(p, log_q)


OBJECTIVES.register("kl", KL, summary="KL(dense || pruned), nats per token", source="EvoPress, arXiv 2410.14649")
