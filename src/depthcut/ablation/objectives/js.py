"""`js` and `js-finercut-code`: the mean divergence of both models to their mixture (FinerCut, arXiv 2405.18218)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from depthcut.ablation.objectives import OBJECTIVES, Objective, Reference, dot


@dataclass(frozen=True)
class JS(Objective):
    """Jensen-Shannon divergence: the mean KL of both to their mixture, at most ln 2.

    Attributes:
        swapped: take KL(mixture || each) instead, as FinerCut's published code does.
    """

    swapped: bool = False

    def reference(self, dense: torch.Tensor) -> Reference:
        return (dense.log_softmax(dim=-1),)

    def at_positions(self, reference: Reference, pruned: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        log_p, log_q = reference[0], pruned.log_softmax(dim=-1)
        p, q = log_p.exp(), log_q.exp()
        mixture = (p + q) / 2
        # Where both underflow to zero the terms vanish, whatever the logarithm is.
        log_mixture = mixture.clamp_min(torch.finfo(mixture.dtype).tiny).log()
        if self.swapped:
            return dot(mixture, log_mixture - (log_p + log_q) / 2)
        return (dot(p, log_p - log_mixture) + dot(q, log_q - log_mixture)) / 2


OBJECTIVES.register(
    "js",
    JS,
    summary="Jensen-Shannon divergence, nats per token, at most ln 2",
    source="FinerCut, arXiv 2405.18218, section 3.2",
)
OBJECTIVES.register(
    "js-finercut-code",
    partial(JS, True),
    summary="the same with the arguments of KL exchanged, nats per token",
    source="FinerCut's published code, arXiv 2405.18218",
)
