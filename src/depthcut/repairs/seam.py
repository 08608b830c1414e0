"""Trains only the sublayers around each removed run (the seam); nothing else runs, not even the output head.

The pruned stream goes in, and the dense stream behind the last sublayer that trains is what should come out, each
token's error over its squared length, since the norms that follow divide by that. All weights of these sublayers train,
norms included, in float32. Runs are sewn front to back, each on the streams that the repaired ones before it give. The
KL of the output on sequences that nothing is trained on says which of a seam's weights are the best, those before it
among them. Best after `refit`, whose closed forms are a better start than the removal: `refit+seam`.

Close to XMerge (arXiv 2609.02083) and CLP (arXiv 2510.23652), which train a merged block or the neighbours of a cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from transformers import PreTrainedConfig, PreTrainedModel

from depthcut.model.branches import Architecture
from depthcut.model.stream import DecoderStream
from depthcut.repairs import REPAIRS, Damage, Repaired
from depthcut.repairs.groups import Group, find_groups
from depthcut.repairs.judge import Judge
from depthcut.repairs.rooms import Rooms
from depthcut.repairs.training.copies import copy_to_train, trained, with_tensors
from depthcut.repairs.training.schedule import Count, Rate, training_rows
from depthcut.types import InputError

JUDGING_SHARE, MOST_JUDGING = 8, 4
"""One sequence of the text in so many judges, and no more than so many; none of them is trained on."""

CHECKS = 4
"""How often a seam is judged while it trains."""

BETAS, WARMUP = (0.9, 0.99), 10
"""Of Adam, and updates over which the rate rises."""


@dataclass(frozen=True)
class Seam:
    """Adam on the kept sublayers about each removed run; the rate falls to 0 along a cosine.

    A token costs three passes through what trains; one run of the dense model over the text, two of the pruned one.

    Attributes:
        steps: updates for each removed run.
        batch_size: sequences an update.
        learning_rate: at its highest, after the first updates.
        before: kept sublayers before a run that train.
        behind: kept sublayers behind it that do.
        anchor: share of the way back to the weights it began with that every update ends with.
    """

    steps: Count = 200
    batch_size: Count = 2
    learning_rate: Rate = 3e-4
    before: Count = 2
    behind: Count = 2
    anchor: Annotated[float, Field(ge=0, le=1)] = 0.0
    replaces_units: ClassVar[bool] = False
    judged_by: ClassVar[str] = "kl"

    @property
    def num_sequences(self) -> int:
        """Sequences that the updates of one run take; a text with fewer is gone through again."""
        return self.steps * self.batch_size

    def check(self, architecture: Architecture, config: PreTrainedConfig) -> None:
        """Takes every family."""

    @torch.no_grad()
    def repair(self, damage: Damage, pruned: PreTrainedModel) -> Repaired:
        """The pruned model with other weights about each run."""
        num_sequences = len(damage.text.input_ids)
        if num_sequences < 2:
            raise InputError("seam trains on some sequences and is judged on others; give it at least 2")
        num_judging = max(1, min(MOST_JUDGING, num_sequences // JUDGING_SHARE))
        text, judging = damage.text.split(num_sequences - num_judging)
        found = find_groups(damage.dense, DecoderStream(pruned, damage.dense.architecture), damage.removed)
        # What was removed before the first kept sublayer has none before it.
        cuts = [-1] if damage.dense.units[0] in damage.removed else []
        cuts += [index for index, group in enumerate(found) if group.before_removal]
        spans = [found[max(0, cut + 1 - self.before) : cut + 1 + self.behind] for cut in cuts]
        names = _names(pruned, damage.dense.architecture, [group for span in spans for group in span])
        model = copy_to_train(pruned, names)
        half = pruned.dtype.itemsize < 4
        sewing = _Sewing(self, replace(damage, text=text), model, damage.judge("kl", judging))
        # A cache of rounded weights would outlive the updates.
        dtype = pruned.dtype if half else torch.bfloat16
        with torch.autocast(model.device.type, dtype, enabled=half, cache_enabled=False):
            for span in spans:
                sewing.sew(span)
                damage.advance(100 / len(spans))
        sewing.close()
        return Repaired(with_tensors(pruned, trained(model)), curve=tuple(sewing.curve))


def _names(model: PreTrainedModel, architecture: Architecture, groups: Sequence[Group]) -> list[str]:
    """Names of all parameters of some sublayers of the pruned model."""
    inside: set[int] = set()
    for unit in (unit for group in groups for unit in group.pruned):
        block = architecture.block_list(model)[unit.layer]
        branch = architecture.branches[unit.kind].of(block)
        for name in (*branch.shared_norms, *branch.modules):
            inside |= {id(parameter) for parameter in getattr(block, name).parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) in inside]


class _Sewing:
    """Both streams of the text, run on from seam to seam, and the seam that trains.

    Args:
        model: trained in place; what does not take gradients is shared with the pruned model.

    Attributes:
        curve: the loss of each check's updates, under the updates that were made till then.
    """

    def __init__(self, settings: Seam, damage: Damage, model: PreTrainedModel, judge: Judge) -> None:
        self._settings, self._damage, self._model, self._judge = settings, damage, model, judge
        self._dense, self._pruned = damage.dense, DecoderStream(model, damage.dense.architecture)
        self._rooms = Rooms(damage, 2)
        self._entering, self._meant = self._rooms.take(), self._rooms.take()
        self._pruned_at = self._dense_at = 0
        self._least: float | None = None
        self.curve: list[tuple[int, float]] = []

    def close(self) -> None:
        del self._entering, self._meant
        self._rooms.close()

    def sew(self, span: Sequence[Group]) -> None:
        """Trains the sublayers of a span and leaves them with the weights that were judged best."""
        start, stop = span[0].pruned_start, span[-1].pruned_stop
        self._pruned_at = self._run_on(self._pruned, self._entering, self._pruned_at, start)
        self._dense_at = self._run_on(self._dense, self._meant, self._dense_at, span[-1].dense_stop)
        inside = set(_names(self._model, self._dense.architecture, span))
        weights = [parameter for name, parameter in self._model.named_parameters() if name in inside]
        first = best = [weight.detach().clone() for weight in weights]
        if self._least is None:
            self._least = self._value()
        steps, size = self._settings.steps, self._settings.batch_size
        optimiser = torch.optim.Adam(weights, lr=self._settings.learning_rate, betas=BETAS)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, self._rate)
        order = training_rows(self._damage.text, self._settings.num_sequences, self._damage.seed)
        losses: list[float] = []
        for step in range(steps):
            optimiser.zero_grad()
            losses.append(self._loss(order[step * size : (step + 1) * size], start, stop))
            optimiser.step()
            schedule.step()
            for weight, before in zip(weights, first, strict=True):
                weight.data.lerp_(before, self._settings.anchor)
            if (step + 1) * CHECKS // steps > step * CHECKS // steps:
                made = self.curve[-1][0] if self.curve else 0
                self.curve.append((made + len(losses), sum(losses) / len(losses)))
                losses.clear()
                value = self._value()
                if value < self._least:
                    self._least, best = value, [weight.detach().clone() for weight in weights]
        for weight, values in zip(weights, best, strict=True):
            weight.data.copy_(values)

    def _rate(self, step: int) -> float:
        """The share of the highest rate at an update."""
        return min(1.0, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / self._settings.steps)) / 2

    def _value(self) -> float:
        """One judges for all processes, who might otherwise disagree by a rounding."""
        return self._damage.ranks.from_first(lambda: self._judge(self._model))

    def _run_on(self, stream: DecoderStream, kept: torch.Tensor, start: int, stop: int) -> int:
        """Runs a kept stream of all text on, in place, and says where it stands."""
        text = self._damage.text
        for rows in torch.split(torch.arange(len(kept)), self._damage.batch_size):
            batch = stream.prepare(text.input_ids[rows], text.attention_mask[rows])
            entering = kept[rows].to(batch.embedded.device) if start else batch.embedded
            kept[rows] = stream.run(batch, start=start, stop=stop, stream=entering).to(kept)
        return stop

    def _loss(self, rows: torch.Tensor, start: int, stop: int) -> float:
        """The mean error of the stream behind the seam, as a share of the squared length; adds its gradients."""
        text = self._damage.text
        batch = self._pruned.prepare(text.input_ids[rows], text.attention_mask[rows])
        entering = self._entering[rows].to(batch.embedded.device)
        with torch.enable_grad():
            found = self._pruned.run(batch, start=start, stop=stop, stream=entering).float()
            tokens, meant = batch.token_mask.to(found.device), self._meant[rows].to(found.device).float()
            share = (found - meant).square().sum(dim=-1) / meant.square().sum(dim=-1)
            loss = share[tokens].mean()
            loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())


REPAIRS.register(
    "seam", Seam, summary="trains the sublayers about each removed run, alone", source="XMerge, arXiv 2609.02083"
)
