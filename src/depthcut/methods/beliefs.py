"""What a lazy search believes of its candidates: by how much the objective grows if one goes next, by sequence.

A first look is at a pilot text of excerpts. Once a candidate has been run on sequences of the text itself, its numbers
there are kept, and later looks only move them by what the pilot says has changed: that is far less noise than the look
itself has.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from depthcut.ablation.ablation import Ablation
from depthcut.ablation.ledger import Removed
from depthcut.methods.race import Racer
from depthcut.types import Removal

TOKEN_NOISE, TOKEN_DRIFT = 6.4, 2.4
"""Standard deviation of one token, in increases of the best candidate: of what two candidates differ by there, and of
how that changes from round to round. Measured on SmolLM2 (docs/log.md); a race soon learns what they are elsewhere."""


@dataclass
class _Belief:
    """Of one candidate.

    Attributes:
        increase: (sequences,) float64.
        on_pilot: the increase at the last look at the pilot text.
        was_run: whether it has been run on all of the text itself.
    """

    increase: torch.Tensor
    on_pilot: float
    was_run: bool = False


class Beliefs:
    """Of every candidate that was looked at.

    Args:
        ablation: on the whole text.
        pilot: on excerpts of it.
    """

    def __init__(self, ablation: Ablation, pilot: Ablation) -> None:
        self.ablation, self.pilot = ablation, pilot
        self._of: dict[Removal, _Belief] = {}
        self._scales: list[float] = []
        self._num_tokens, self._num_pilot_tokens = (
            int(text.samples.attention_mask.sum()) for text in (ablation, pilot)
        )

    def __contains__(self, group: Removal) -> bool:
        return group in self._of

    def increase(self, group: Removal) -> float:
        """What is believed; infinite of a group that was never looked at."""
        if group not in self._of:
            return math.inf
        return math.fsum((self._of[group].increase * self.ablation.weights).tolist())

    def look(self, groups: Sequence[Removal], removed: Removed) -> None:
        """Looks at groups on the pilot text, if they go after what is removed."""
        if not groups:
            return
        before, *after = self.pilot.evaluate([removed, *(removed.union(group) for group in groups)])
        scale = statistics.median_low(self._scales) if self._scales else 1.0
        for group, value in zip(groups, after, strict=True):
            increase = value - before
            known = self._of.get(group)
            if known is None:
                self._of[group] = _Belief(torch.full_like(self.ablation.weights, increase * scale), increase)
            else:
                known.increase = known.increase + (increase - known.on_pilot) * scale
                known.on_pilot = increase

    def error(self, group: Removal, increase: float) -> float:
        """Standard error of what is believed of a group after a look.

        Args:
            increase: about what the best candidate's is.
        """
        token_noise = TOKEN_DRIFT if self._of[group].was_run else TOKEN_NOISE
        return token_noise * abs(increase) / math.sqrt(self._num_pilot_tokens)

    def racer(self, group: Removal, removed: Removed, increase: float, rate: float) -> Racer:
        """A group in a race, if it goes after what is removed.

        Args:
            increase: about what the best candidate's is, of as much as counts for the same.
            rate: what its increase is divided by.
        """
        belief = self._of[group]
        token_noise = TOKEN_DRIFT if belief.was_run else TOKEN_NOISE
        return self._racer(removed.union(group), belief.increase, token_noise * abs(increase), rate)

    def learn(self, group: Removal, racer: Racer) -> None:
        """Takes over what a race has shown of a group."""
        belief = self._of[group]
        belief.increase = racer.believed
        if racer.is_through:
            belief.was_run = True
            if belief.on_pilot > 0:
                self._scales.append(self.increase(group) / belief.on_pilot)

    def challengers(
        self, sets: Sequence[Removed], standing: Removed, *, fall: float, standard_errors: float
    ) -> list[Racer]:
        """Of some sets those that may be better than one that stands, by a look at the pilot text.

        Args:
            fall: by how much the objective is less without what the sets differ by from the standing one, about.
        """
        now, *after = self.pilot.evaluate([standing, *sets])
        noise = TOKEN_NOISE * fall
        most = standard_errors * noise / math.sqrt(self._num_pilot_tokens)
        excess = {removed: value - now for removed, value in zip(sets, after, strict=True)}
        alike = torch.ones_like(self.ablation.weights)
        return [self._racer(removed, alike * excess[removed], noise) for removed in sets if excess[removed] <= most]

    def _racer(self, removed: Removed, believed: torch.Tensor, token_noise: float, rate: float = 1.0) -> Racer:
        num_sequences = len(believed)
        noise = token_noise / math.sqrt(self._num_tokens / num_sequences)
        return Racer(removed, believed, noise, num_sequences * self._num_pilot_tokens / self._num_tokens, rate)
