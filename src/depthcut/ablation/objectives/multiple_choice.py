"""`task` and `task-error`: how far right answers are ahead of wrong ones (Deeper Look, arXiv 2407.16286)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from depthcut.ablation.objectives import OBJECTIVES, QuestionObjective, Reference, nll


@dataclass(frozen=True)
class MultipleChoice(QuestionObjective):
    """How much the right answer is behind the best wrong one: NLL(right) - least NLL(wrong).

    The NLL of an answer is the mean over its tokens.

    Attributes:
        error: 1 where the right answer is not ahead, else 0, in place of the difference.
    """

    error: bool = False

    @property
    def measure(self) -> str:
        return "share of wrong answers" if self.error else "nats per token"

    @property
    def needs_dense(self) -> bool:
        return False

    def at_positions(self, reference: Reference, pruned: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nll(pruned.log_softmax(dim=-1), targets)

    def of_question(self, answers: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        behind = answers[right].squeeze() - answers[~right].min()
        return (behind >= 0).double() if self.error else behind


OBJECTIVES.register(
    "task",
    MultipleChoice,
    summary="how far the right answer is behind the best wrong one, nats per token; on questions",
    source="Deeper Look, arXiv 2407.16286",
)
OBJECTIVES.register(
    "task-error",
    partial(MultipleChoice, True),
    summary="share of questions whose right answer is not ahead",
    source="Deeper Look, arXiv 2407.16286",
)
