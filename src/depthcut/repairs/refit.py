"""Repairs in closed form, in the stock architecture and without a parameter more: kept projections are solved anew so
that the pruned stream meets the dense stream again.

Both models are run side by side, front to back, on text of which every fourth sequence is held out. For the kept
sublayers about each removed run, from the last one before it on,

1. right before and right behind the run, the maps that read the stream are multiplied with the linear map that takes
   the normed pruned stream to the normed dense one: what the sublayer reads is as near as a linear map can bring it to
   what it read before;
2. the output projection is solved so that what it adds leads to the dense stream entering the next kept sublayer, by
   ridge regression of what is missing, with each token weighted by one over the squared length of its stream, since
   the norms that follow divide by that;
3. the projection before the last one before a removed run is solved so that the stream meets the dense one after the
   run: what the last one holds does not tell all that the run would have added.

Where experts write in place of one projection, what they and their router read is multiplied likewise, and what writes
is solved in turn: the shared expert, then each expert's down projection on the tokens that reach it (`experts.py`).

How strongly each output channel is held to its old weight is decided on the held-out tokens (`moments.py`), also that
it stays as it is. A stream that is nearer to the dense one does not always give an output that is: so each change is
kept, whole or halved, only where the KL of the output falls on sequences that nothing was fitted to, and a removed run
has been repaired when some sublayers in succession have little to give. `linear` is the special case of ReplaceMe
(arXiv 2505.02819, section 2.2): only before a removed window, and only a map of what the projection gave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from depthcut.model.branches import Architecture
from depthcut.model.stream import DecoderStream, Pass
from depthcut.repairs import REPAIRS, Damage, Repaired, require_branches
from depthcut.repairs.front_to_back import FrontToBack, WeightChange
from depthcut.repairs.groups import Group
from depthcut.repairs.judge import Judge
from depthcut.surgery import twin
from depthcut.types import InputError

JUDGING_SHARE = 8
"""One sequence of the text in so many judges the changes, and is fitted to by none."""

BEND = 4.0
"""What bends the KL along a step is at most so many times the variance of the positions' gains over the KL: 3.5 was the
most of 41 steps that did not help (docs/log.md)."""

RENEWS = 3.0
"""A sublayer helps, and those after it are tried, where the KL falls by so many margins."""


@dataclass(frozen=True)
class Refit:
    """Output projections of the kept sublayers about each removed run, and what those after it read.

    Costs about two forward passes of the decoder over the text, the moments, and for each change that is tried a part
    of a forward pass over the sequences that judge. Ends where the last removed run has been repaired.

    Attributes:
        reads: also multiply the maps that read the stream in the sublayers right before and right behind a run.
        ahead: also solve the projection before the last one before a removed run for the stream after the run.
        patience: sublayers in succession that may have little to give before a run counts as repaired.
        steps: shares of a change that are tried, one after the other, until the KL falls or cannot any more.
        margin: share of the KL by which it has to fall.
        ridges: strengths to choose from, relative to the mean energy of the inputs.
        tokens_per_input: tokens that have to reach an expert, for each input of its down projection, for it to be
            solved; it is left as it is where fewer do.
    """

    reads: bool = True
    ahead: bool = True
    patience: int = 2
    steps: tuple[float, ...] = (1.0, 0.5)
    margin: float = 1e-3
    ridges: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0)
    tokens_per_input: float = 0.5
    replaces_units: ClassVar[bool] = False
    judged_by: ClassVar[str] = "kl"
    num_sequences: ClassVar[int] = 0

    def check(self, architecture: Architecture, config: PreTrainedConfig) -> None:
        """Takes every family."""

    @torch.no_grad()
    def repair(self, damage: Damage, pruned: PreTrainedModel) -> Repaired:
        if damage.dense.architecture.whole:
            # What writes to the stream inside of a block is not known.
            return Repaired(twin(pruned), {})
        num_sequences = len(damage.text.input_ids)
        if num_sequences < 3:
            raise InputError("refit is fitted to some sequences and judged on others; give it at least 3")
        text, judging = damage.text.split(num_sequences - max(1, num_sequences // JUDGING_SHARE))
        with FrontToBack(replace(damage, text=text), twin(pruned), self.ridges, self.tokens_per_input) as sweep:
            trial = _Trial(damage.judge("kl", judging), sweep.pruned, self.steps, self.margin)
            units: dict[str, float] = {}
            # What was removed before the first kept sublayer has none before it.
            behind = damage.dense.units[0] in damage.removed
            waits = self.patience if behind else 0
            for group, cut in sweep.groups():
                waits = self.patience if group.before_removal else waits
                gained = 0.0
                if self.reads and group.after_removal and (behind or group.before_removal):
                    gained = trial.keeps(sweep.fit_reads(group), group)
                if self.ahead and cut and not group.before_removal:
                    change, left = sweep.fit_writes(group, widest=True, cut=cut)
                    if trial.keeps(change, group):
                        units.update(left)
                behind = group.before_removal
                if not waits:
                    if group.dense_stop > sweep.last_cut:
                        break
                    sweep.advance(group)
                    trial.advance(group)
                    continue
                change, left = sweep.fit_writes(group, widest=True)
                by_writing = trial.keeps(change, group)
                if by_writing:
                    units.update(left)
                sweep.leave(group, changed=by_writing > 0)
                trial.advance(group)
                waits = self.patience if gained + by_writing >= RENEWS else waits - 1
            return Repaired(sweep.pruned.model, units, settings=_counts(sweep))


@dataclass(frozen=True)
class LinearMap:
    """A linear map of what the sublayer before each removed window adds, folded into its output projection.

    Attributes:
        ridges: strengths to choose from, relative to the mean energy of what the projection gave.
        tokens_per_input: as of `refit`, for each channel of what an expert gave.
    """

    ridges: tuple[float, ...] = (1e-4, 1e-3, 0.01, 0.1, 1.0)
    tokens_per_input: float = 0.5
    replaces_units: ClassVar[bool] = False
    judged_by: ClassVar[str] = "kl"
    num_sequences: ClassVar[int] = 0

    def check(self, architecture: Architecture, config: PreTrainedConfig) -> None:
        """Raises InputError where nothing is known of what is inside of a block."""
        require_branches(architecture, "linear")

    @torch.no_grad()
    def repair(self, damage: Damage, pruned: PreTrainedModel) -> Repaired:
        with FrontToBack(damage, twin(pruned), self.ridges, self.tokens_per_input) as sweep:
            units = {}
            for group, _ in sweep.groups():
                if group.before_removal:
                    change, left = sweep.fit_writes(group, widest=False)
                    units.update(left)
                    change.make()
                    sweep.leave(group, changed=True)
                else:
                    sweep.advance(group)
            return Repaired(sweep.pruned.model, units, settings=_counts(sweep))


def _counts(sweep: FrontToBack) -> dict[str, int | float]:
    """Of all experts that were tried, how many were solved, and how many too few tokens reached; nothing without."""
    if not sweep.experts:
        return {}
    solved, left_alone = (sum(counts) for counts in zip(*sweep.experts.values(), strict=True))
    return {"experts_solved": solved, "experts_left_alone": left_alone}


class _Trial:
    """Makes changes that help the output, on sequences that judge and go through the pruned model beside the others."""

    def __init__(self, judge: Judge, pruned: DecoderStream, steps: Sequence[float], margin: float) -> None:
        self._judge, self._pruned = judge, pruned
        self._steps, self._margin = steps, margin
        self._batches = judge.batches(pruned)
        self._streams = [batch.embedded for batch in self._batches]
        self._position = 0
        self._least: torch.Tensor | None = None

    def keeps(self, change: WeightChange, group: Group) -> float:
        """Makes a change, whole or in part, if the objective falls; else leaves the model as it is.

        Returns:
            By how many margins it fell; 0 where the change was not made.
        """
        self._run_to(group.pruned_start)
        if self._least is None:
            self._least = self._values()
        margin = self._margin * float(self._least.mean())
        longer: tuple[float, torch.Tensor] | None = None
        # Where the models answer alike, but for rounding, there is nothing to gain.
        for step in self._steps if change.maps and margin > 0 else ():
            if longer is not None and _most_gain(step / longer[0], longer[1], self._least) <= margin:
                break
            change.make(step)
            values = self._values()
            gain = self._least - values
            if float(gain.mean()) > margin:
                self._least = values
                return float(gain.mean()) / margin
            longer = step, gain
        change.unmake()
        return 0.0

    def advance(self, group: Group) -> None:
        """Goes on to where the next group begins."""
        self._run_to(group.pruned_stop)

    def _run_to(self, position: int) -> None:
        self._streams = self._run(position)
        self._position = position

    def _run(self, stop: int | None) -> list[torch.Tensor]:
        pairs = zip(self._batches, self._streams, strict=True)
        return self._pruned.run_together([Pass(batch, (), self._position, stop, stream) for batch, stream in pairs])

    def _values(self) -> torch.Tensor:
        return self._judge.values(self._pruned, self._batches, self._run(None))


def _most_gain(share: float, gain: torch.Tensor, before: torch.Tensor) -> float:
    """The most that a share of a step may gain in the mean: the whole one was too long, or it led nowhere.

    Along a step the KL is taken for a parabola; what bends it is bounded by how differently the step treats positions.

    Args:
        gain: (positions,) of the whole step.
        before: (positions,) the KL without it.
    """
    mean = float(gain.mean())
    # Where nothing differs from the dense model there is nothing to gain, and nothing that bends.
    bend = BEND * float(gain.var(correction=0)) / float(before.mean()) if before.any() else 0.0
    return share * (mean + (1 - share) * bend)


REPAIRS.register("refit", Refit, summary="projections solved anew, in closed form (the default)", source="ours")
REPAIRS.register(
    "linear",
    LinearMap,
    summary="a linear map before each removed window, folded in",
    source="ReplaceMe, arXiv 2505.02819",
)
