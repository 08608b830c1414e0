"""How long and how fast a repair trains, and the text in the order in which it is trained on."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from depthcut.calibration import Samples
from depthcut.repairs import Damage
from depthcut.types import InputError

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Schedule:
    """AdamW without weight decay, gradients clipped to norm 1; the rate rises linearly and falls to 0 along a cosine.

    The defaults of all repairs that train are those of UIDL (arXiv 2403.17887, appendix A).

    Attributes:
        steps: updates of the weights.
        batch_size: sequences an update; they run in pieces of at most `Damage.batch_size`.
        warmup: updates over which the rate rises, but never more than a tenth of all.
    """

    steps: Count = 5000
    batch_size: Count = 16
    warmup: Annotated[int, Field(ge=0)] = 100

    replaces_units: ClassVar[bool] = False
    judged_by: ClassVar[str] = "loss"

    @property
    def num_sequences(self) -> int:
        """Sequences that all updates take; a text with fewer is gone through again."""
        return self.steps * self.batch_size

    @property
    def warmup_steps(self) -> int:
        """Updates over which the rate really rises."""
        return min(self.warmup, self.steps // 10)

    def sequences_at_once(self, limit: int, num_ranks: int = 1) -> int:
        """The most sequences that run together and divide a rank's part of a batch evenly: pieces weigh the same."""
        of_rank = self.batch_size // num_ranks
        return max(size for size in range(1, min(limit, of_rank) + 1) if of_rank % size == 0)


def training_rows(samples: Samples, num_sequences: int, seed: int) -> torch.Tensor:
    """Rows of the samples in the order of training, (num_sequences,); each epoch is shuffled differently."""
    generator = torch.Generator().manual_seed(seed)
    num_samples = len(samples.input_ids)
    passes = [torch.randperm(num_samples, generator=generator) for _ in range(-(-num_sequences // num_samples))]
    return torch.cat(passes)[:num_sequences]


def counting_sequences(damage: Damage, total: int) -> Damage:
    """The same, whose `advance` takes sequences, of `total` in all, in place of percentages."""
    return replace(damage, advance=lambda sequences: damage.advance(100 * sequences / total))


def require_packages(names: tuple[str, ...]) -> None:
    """Raises InputError where a package is missing that healing needs."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"healing needs {' and '.join(missing)}, which is not here; run: pip install depthcut[heal]")
