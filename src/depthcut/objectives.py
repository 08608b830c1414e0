"""What happens to the output: divergences between the dense model's logits and a pruned model's.

The one place where they are computed; importance, search, recovery and evaluation share it. Each takes float32 logits
at the same positions and gives one number a position. Nothing here chooses positions or takes means.
"""

from __future__ import annotations

import torch

POSITIONS_AT_ONCE = 32
"""Positions whose vocabulary-wide temporaries exist together: few enough to stay in a CPU's cache."""


def kl_divergence(dense: torch.Tensor, pruned: torch.Tensor) -> torch.Tensor:
    """KL(P_dense || P_pruned) in nats; 0 only where the distributions agree, larger = more damage.

    Args:
        dense: (positions, vocabulary) logits.
        pruned: same shape.

    Returns:
        (positions,).
    """
    log_p, log_q = dense.log_softmax(dim=-1), pruned.log_softmax(dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def negative_log_likelihood(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log P(target) in nats.

    Args:
        logits: (positions, vocabulary), the model's prediction of each target.
        targets: (positions,) token ids.

    Returns:
        (positions,).
    """
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")
