"""The calibration text of an objective: its batches, the scored positions, and which values there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from depthcut.ablation.comparator import predicting
from depthcut.ablation.objectives import Objective, QuestionObjective, find_objective
from depthcut.calibration import Choices, Samples
from depthcut.types import InputError


class ObjectiveText(Protocol):
    """Calibration text in batches. The objective has one value per sequence, or per question with all its answers.

    Attributes:
        rows: of each batch, which rows of the samples are run together.
    """

    @property
    def rows(self) -> list[slice]: ...

    @property
    def batch_sizes(self) -> list[int]:
        """Values of each batch."""
        ...

    @property
    def weights(self) -> torch.Tensor:
        """(values,) weight of each in the mean over the text, float64; they sum to 1."""
        ...

    def scored(self, index: int) -> torch.Tensor:
        """(sequences, length) bool, the positions of a batch that count."""
        ...

    def values(self, objective: Objective, index: int, of_sequences: torch.Tensor) -> torch.Tensor:
        """(values of the batch,) float64, from the objective of each of its sequences."""
        ...


def text_of(samples: Samples, objective: str, batch_size: int) -> ObjectiveText:
    """The text of an objective.

    Args:
        batch_size: sequences per batch; for questions, a batch is filled up to at least that many answers.

    Raises:
        InputError: the objective is on questions, and the samples hold none.
    """
    found = find_objective(objective)
    if not isinstance(found, QuestionObjective):
        return Sequences(samples, batch_size, next_token=found.next_token)
    if samples.choices is None:
        raise InputError(
            f"objective {objective!r} compares the answers of multiple-choice questions, and "
            f"{samples.description.source} is text without them; name a file of questions as calibration"
        )
    return QuestionText(samples, samples.choices, batch_size)


@dataclass(frozen=True)
class Sequences:
    """Each sequence has a value, weighted by its number of scored positions.

    Attributes:
        next_token: leave out positions without a next token.
    """

    samples: Samples
    batch_size: int
    next_token: bool

    @property
    def rows(self) -> list[slice]:
        num_rows = len(self.samples.input_ids)
        return _in_batches([slice(row, row + 1) for row in range(num_rows)], self.batch_size)

    @property
    def batch_sizes(self) -> list[int]:
        return [rows.stop - rows.start for rows in self.rows]

    @property
    def weights(self) -> torch.Tensor:
        counts = torch.cat([self.scored(index).sum(dim=-1) for index in range(len(self.rows))]).double()
        return counts / counts.sum()

    def scored(self, index: int) -> torch.Tensor:
        tokens = self.samples.attention_mask[self.rows[index]].bool()
        return predicting(tokens) if self.next_token else tokens

    def values(self, objective: Objective, index: int, of_sequences: torch.Tensor) -> torch.Tensor:
        return of_sequences


@dataclass(frozen=True)
class QuestionText:
    """Each question has a value, computed from all its answers, which run together; all weights are equal."""

    samples: Samples
    choices: Choices
    batch_size: int

    @property
    def rows(self) -> list[slice]:
        return _in_batches(list(self.choices.rows), self.batch_size)

    @property
    def batch_sizes(self) -> list[int]:
        return [len(self.choices[rows].rows) for rows in self.rows]

    @property
    def weights(self) -> torch.Tensor:
        count = sum(self.batch_sizes)
        return torch.full((count,), 1 / count, dtype=torch.float64)

    def scored(self, index: int) -> torch.Tensor:
        return self.choices[self.rows[index]].scored

    def values(self, objective: Objective, index: int, of_sequences: torch.Tensor) -> torch.Tensor:
        assert isinstance(objective, QuestionObjective)
        choices = self.choices[self.rows[index]]
        return torch.stack([objective.of_question(of_sequences[rows], choices.right[rows]) for rows in choices.rows])


def _in_batches(whole: list[slice], batch_size: int) -> list[slice]:
    """Joins neighbouring slices to batches of at least `batch_size` rows without dividing any; the last batch may have
    fewer.
    """
    batches: list[slice] = []
    begin = 0
    for rows in whole:
        if rows.stop - begin >= batch_size or rows.stop == whole[-1].stop:
            batches.append(slice(begin, rows.stop))
            begin = rows.stop
    return batches
