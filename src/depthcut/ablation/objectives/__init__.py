"""What happens to the output: how far a pruned model's logits are from the dense model's, or from the text.

The one place where this is computed, one file an objective; importance, search, repair and evaluation share it. Every
objective gives one number a position, smaller = better, and says how positions make one number a sequence. Float32
throughout.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from depthcut.model.heads import GIVES, HeadKind
from depthcut.registry import Registry, split_settings
from depthcut.types import InputError

POSITIONS_AT_ONCE = 32
"""Positions whose vocabulary-wide temporaries exist together: few enough to stay in a CPU's cache."""

Reference = tuple[torch.Tensor, ...]
"""What an objective keeps of the dense logits: each (positions, ...)."""


class Objective(ABC):
    """How far logits are from the dense model's or from the text; a frozen dataclass whose fields are its settings."""

    @property
    def measure(self) -> str:
        """Unit of measure, for people."""
        return "nats per token"

    @property
    def head(self) -> HeadKind:
        """What models have to end in for it to mean anything."""
        return "tokens"

    @property
    def next_token(self) -> bool:
        """Whether it leaves out each sequence's last position, which predicts nothing."""
        return False

    @property
    def needs_dense(self) -> bool:
        """Whether it compares with the dense model's logits; else the text alone decides."""
        return True

    def reference(self, dense: torch.Tensor) -> Reference:
        """What is kept of the dense logits, (positions, vocabulary); nothing where it does not need them."""
        return ()

    @abstractmethod
    def at_positions(self, reference: Reference, pruned: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """One number a position.

        Args:
            reference: of the same positions.
            pruned: (positions, vocabulary) logits.
            targets: (positions,) the token that follows.
        """

    def of_sequence(self, total: torch.Tensor, num_positions: torch.Tensor) -> torch.Tensor:
        """The sequences' numbers from the sums over their positions, both (sequences,) float64; by default the mean."""
        return total / num_positions


class QuestionObjective(Objective):
    """What is on multiple-choice questions: one number from the numbers of a question's answers, run together."""

    @abstractmethod
    def of_question(self, answers: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """One question's number.

        Args:
            answers: (options,) float64, what `of_sequence` gave of each.
            right: (options,) bool, true once.
        """


OBJECTIVES: Registry[Objective] = Registry("objective", "depthcut.ablation.objectives", "depthcut.objectives")


def find_objective(text: str) -> Objective:
    """The objective that `name,setting=value` says. Raises InputError naming the nearest where there is none."""
    return OBJECTIVES.parse(text)[1]


OF_HEAD: dict[HeadKind, str] = {"tokens": "kl", "classes": "class-logits", "embedding": "embedding-cosine"}
"""What decides where the user names no objective."""


def check_objective(text: str, head: HeadKind) -> None:
    """Raises InputError where an objective is of another kind of output than a model with such a head gives."""
    if find_objective(text).head != head:
        raise InputError(
            f"objective {split_settings(text)[0]!r} is about models of another kind, and this one {GIVES[head]}; "
            f"leave it out, which takes {OF_HEAD[head]}"
        )


def objective_for(text: str, head: HeadKind) -> str:
    """An objective, or the one that stands in its place for models that end otherwise."""
    return text if find_objective(text).head == head else OF_HEAD[head]


def asks_questions(text: str) -> bool:
    """Whether an objective is on questions, and not on any text."""
    return isinstance(find_objective(text), QuestionObjective)


def dot(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Over the vocabulary."""
    return torch.linalg.vecdot(left, right)  # type: ignore[no-any-return]


def nll(log_q: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of the next token, one number a position, from log-probabilities, (positions, vocabulary)."""
    return torch.nn.functional.nll_loss(log_q, targets, reduction="none")
