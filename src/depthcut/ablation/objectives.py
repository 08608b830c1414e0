"""What happens to the output: how far a pruned model's logits are from the dense model's, or from the text.

The one place where this is computed; importance, search, repair and evaluation share it. Every objective gives one
number a position, smaller = better, and says how positions make one number a sequence. Float32 throughout.

Sources: `js`, `logit-angular` and `logit-l2` FinerCut (arXiv 2405.18218, section 3.2), `kl` EvoPress (arXiv
2410.14649), `loss` SLEB (arXiv 2402.09025) and ShortGPT, `logit-l2-token` and `task` Deeper Look (arXiv 2407.16286).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from depthcut.registry import unknown_name
from depthcut.types import InputError

POSITIONS_AT_ONCE = 32
"""Positions whose vocabulary-wide temporaries exist together: few enough to stay in a CPU's cache."""

Reference = tuple[torch.Tensor, ...]
"""What an objective keeps of the dense logits: each (positions, ...)."""


class Objective(Protocol):
    """How far logits are from the dense model's or from the text.

    Attributes:
        measure: unit of measure, for people.
    """

    @property
    def measure(self) -> str: ...

    def reference(self, dense: torch.Tensor) -> Reference:
        """What is kept of the dense logits, (positions, vocabulary); nothing where the text alone decides."""
        ...

    def at_positions(self, reference: Reference, pruned: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """One number a position.

        Args:
            reference: of the same positions.
            pruned: (positions, vocabulary) logits.
            targets: (positions,) the token that follows.
        """
        ...

    def of_sequence(self, total: torch.Tensor, num_positions: torch.Tensor) -> torch.Tensor:
        """The sequences' numbers from the sums over their positions, both (sequences,) float64."""
        ...


class _Mean:
    """Mean over positions."""

    def of_sequence(self, total: torch.Tensor, num_positions: torch.Tensor) -> torch.Tensor:
        return total / num_positions


def _dot(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Over the vocabulary."""
    return torch.linalg.vecdot(left, right)  # type: ignore[no-any-return]


def _entropy_terms(log_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities, and the sum of p log p."""
    p = log_p.exp()
    return p, _dot(p, log_p)


@dataclass(frozen=True)
class KL(_Mean):
    """KL(P_dense || P_pruned)."""

    measure: str = "nats per token"

    def reference(self, dense: torch.Tensor) -> Reference:
        return self.reference_of(dense.log_softmax(dim=-1))

    def at_positions(self, reference: Reference, pruned: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.of_log_probabilities(reference, pruned.log_softmax(dim=-1))

    def reference_of(self, log_p: torch.Tensor) -> Reference:
        """The reference from the dense model's log-probabilities, for who has them."""
        return _entropy_terms(log_p)

    def of_log_probabilities(self, reference: Reference, log_q: torch.Tensor) -> torch.Tensor:
        """One number a position from the pruned model's log-probabilities, (positions, vocabulary)."""
        p, negative_entropy = reference
        return negative_entropy - _dot(p, log_q)


@dataclass(frozen=True)
class JS(_Mean):
    """Jensen-Shannon divergence: the mean KL of both to their mixture, at most ln 2.

    Attributes:
        swapped: take KL(mixture || each) instead, as FinerCut's published code does.
    """

    swapped: bool = False
    measure: str = "nats per token"

    def reference(self, dense: torch.Tensor) -> Reference:
        return (dense.log_softmax(dim=-1),)

    def at_positions(self, reference: Reference, pruned: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        log_p, log_q = reference[0], pruned.log_softmax(dim=-1)
        p, q = log_p.exp(), log_q.exp()
        mixture = (p + q) / 2
        # Where both underflow to zero the terms vanish, whatever the logarithm is.
        log_mixture = mixture.clamp_min(torch.finfo(mixture.dtype).tiny).log()
        if self.swapped:
            return _dot(mixture, log_mixture - (log_p + log_q) / 2)
        return (_dot(p, log_p - log_mixture) + _dot(q, log_q - log_mixture)) / 2


@dataclass(frozen=True)
class LogitAngular(_Mean):
    """arccos of the raw logits' cosine, clamped to [0, 1]; not divided by pi."""

    measure: str = "radians"

    def reference(self, dense: torch.Tensor) -> Reference:
        return (torch.nn.functional.normalize(dense, dim=-1),)

    def at_positions(self, reference: Reference, pruned: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return _dot(reference[0], torch.nn.functional.normalize(pruned, dim=-1)).clamp(0, 1).arccos()


@dataclass(frozen=True)
class LogitL2:
    """Distance of the raw logits.

    Attributes:
        per_token: mean over positions of the distance at each (Deeper Look), not the Frobenius norm over the whole
            sequence (FinerCut).
    """

    per_token: bool = False
    measure: str = "logits"

    def reference(self, dense: torch.Tensor) -> Reference:
        return (dense,)

    def at_positions(self, reference: Reference, pruned: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        distance: torch.Tensor = torch.linalg.vector_norm(pruned - reference[0], dim=-1)
        return distance if self.per_token else distance.square()

    def of_sequence(self, total: torch.Tensor, num_positions: torch.Tensor) -> torch.Tensor:
        return total / num_positions if self.per_token else total.sqrt()


@dataclass(frozen=True)
class Loss(_Mean):
    """Cross entropy of the next token."""

    measure: str = "nats per token"

    def reference(self, dense: torch.Tensor) -> Reference:
        return ()

    def at_positions(self, reference: Reference, pruned: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.of_log_probabilities(pruned.log_softmax(dim=-1), targets)

    def of_log_probabilities(self, log_q: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """One number a position from log-probabilities, (positions, vocabulary), for who has them."""
        return torch.nn.functional.nll_loss(log_q, targets, reduction="none")


@dataclass(frozen=True)
class MultipleChoice(Loss):
    """How much the right answer is behind the best wrong one: NLL(right) - least NLL(wrong).

    The NLL of an answer is the mean over its tokens. Deeper Look's task-adaptive metrics (arXiv 2407.16286).

    Attributes:
        error: 1 where the right answer is not ahead, else 0, in place of the difference.
    """

    error: bool = False

    def of_question(self, nll: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """One question's number, negative where the right answer is ahead.

        Args:
            nll: (options,) float64.
            right: (options,) bool, true once.
        """
        behind = nll[right].squeeze() - nll[~right].min()
        return (behind >= 0).double() if self.error else behind


OBJECTIVES: dict[str, Objective] = {
    "js": JS(),
    "js-finercut-code": JS(swapped=True),
    "kl": KL(),
    "logit-angular": LogitAngular(),
    "logit-l2": LogitL2(),
    "logit-l2-token": LogitL2(per_token=True),
    "loss": Loss(),
}

TASK_OBJECTIVES: dict[str, Objective] = {
    "task": MultipleChoice(),
    "task-error": MultipleChoice(error=True, measure="share of wrong answers"),
}
"""Objectives on multiple-choice questions; those above are on any text."""

NEXT_TOKEN_OBJECTIVES = frozenset({"loss", "logit-l2-token"})
"""Objectives that leave out each sequence's last position, which predicts nothing."""


def find_objective(name: str) -> Objective:
    """The objective of that name. Raises InputError naming the nearest where there is none."""
    known = OBJECTIVES | TASK_OBJECTIVES
    if name not in known:
        raise InputError(unknown_name("objective", name, list(known)))
    return known[name]
