"""Small modules in place of what was removed: a constant, or a low-rank map of the stream (A Deeper Look at Depth
Pruning, arXiv 2407.16286, emulated updates). Fitted to what the removed units added in the dense model.

They live in the checkpoint, which loads through depthcut or the code beside it; blocks are not packed over them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from depthcut.model.branches import Architecture
from depthcut.model.bypass import Emulation
from depthcut.model.device import widest_type
from depthcut.repairs import REPAIRS, Damage, Repaired, require_branches
from depthcut.repairs.moments import FITTED, HELD_OUT, Moments, held_out_sequences
from depthcut.repairs.training.folder import training_folder
from depthcut.repairs.training.goals import Goal, NextToken, ask_teacher, follow_stream
from depthcut.repairs.training.schedule import Count, Rate, Schedule, counting_sequences, training_rows
from depthcut.surgery import apply
from depthcut.types import InputError, Unit

Visit = Callable[[Unit, torch.Tensor, torch.Tensor, int], None]
"""Called as visit(unit, stream, added, part) with tokens of the stream entering a removed unit and what the unit adds
to them, (tokens, hidden) each, of the part that is fitted to or the one that is held out."""


@dataclass(frozen=True)
class Bias:
    """The mean of what each removed unit added. Costs two forward passes of the decoder."""

    replaces_units: ClassVar[bool] = True
    judged_by: ClassVar[str] = "kl"
    num_sequences: ClassVar[int] = 0

    def check(self, architecture: Architecture, config: PreTrainedConfig) -> None:
        """Raises InputError where nothing is known of what is inside of a block."""
        require_branches(architecture, "bias")

    @torch.no_grad()
    def repair(self, damage: Damage, pruned: PreTrainedModel) -> Repaired:
        means = _means(damage)
        before, after = _zeros(damage), _zeros(damage)

        def measure(unit: Unit, _: torch.Tensor, added: torch.Tensor, part: int) -> None:
            if part == HELD_OUT:
                before[unit] += float(added.square().sum())
                after[unit] += float((added - means[unit][1]).square().sum())

        _visit_removed(damage, damage.removed, measure)
        hidden_size = damage.dense.model.config.get_text_config().hidden_size
        emulations = {unit: Emulation(hidden_size, 0) for unit in means}
        for unit, emulation in emulations.items():
            emulation.bias.copy_(means[unit][1] / _branch_multiplier(damage))
        damage.advance(100)
        left = {str(unit): after[unit] / before[unit] if before[unit] else 1.0 for unit in sorted(means)}
        return Repaired(_replaced(damage, emulations), left)


@dataclass(frozen=True)
class LowRank(Schedule):
    """Reduced-rank ridge regression of what each removed unit added on the stream that entered it.

    Costs one forward pass of the decoder, and one more for every group of units whose moments fit the memory budget.

    Attributes:
        rank: of the map, at most the hidden size.
        ridges: strengths to choose from, relative to the mean energy of the stream.
        train: what the solved maps are trained for afterwards: the loss of the text, the dense model's stream before
            the output head, or its answers. `steps`, `batch_size`, `warmup` and `learning_rate` are of that alone.
        learning_rate: at its highest.
        top_k: tokens of each of the dense model's answers that are kept one by one.
    """

    steps: Count = 200
    learning_rate: Rate = 1e-3
    rank: int = 16
    ridges: tuple[float, ...] = (1e-4, 1e-3, 0.01, 0.1, 1.0)
    train: Literal["none", "lm", "mse", "kd"] = "none"
    top_k: Count = 64
    replaces_units: ClassVar[bool] = True
    judged_by: ClassVar[str] = "kl"

    @property
    def num_sequences(self) -> int:
        return 0 if self.train == "none" else super().num_sequences

    def check(self, architecture: Architecture, config: PreTrainedConfig) -> None:
        """Raises InputError where the rank is out of range, or nothing is known of what is inside of a block."""
        require_branches(architecture, "low-rank")
        hidden_size = config.get_text_config().hidden_size
        if not 1 <= self.rank <= hidden_size:
            raise InputError(f"rank {self.rank} is out of range: a map of this model's stream has 1 to {hidden_size}")

    @torch.no_grad()
    def repair(self, damage: Damage, pruned: PreTrainedModel) -> Repaired:
        hidden_size = damage.dense.model.config.get_text_config().hidden_size
        means = _means(damage)
        emulations: dict[Unit, Emulation] = {}
        left: dict[str, float] = {}
        for units in _in_groups(sorted(means), Moments.bytes(hidden_size, hidden_size), damage.memory_budget):
            moments = {unit: Moments(hidden_size, hidden_size) for unit in units}

            def add(
                unit: Unit,
                stream: torch.Tensor,
                added: torch.Tensor,
                part: int,
                moments: Mapping[Unit, Moments] = moments,
            ) -> None:
                mean_stream, mean_added = means[unit]
                ones = torch.ones(len(stream), device=stream.device)
                moments[unit].add(stream - mean_stream, added - mean_added, ones, part)

            _visit_removed(damage, frozenset(units), add)
            for unit in units:
                found = moments[unit].solve(self.ridges)
                damage.advance(100 / len(means))
                emulations[unit], left[str(unit)] = self._emulation(damage, moments[unit], *means[unit], *found)
        solved = Repaired(_replaced(damage, emulations), left)
        return solved if self.train == "none" else self._trained(damage, solved)

    def _trained(self, damage: Damage, solved: Repaired) -> Repaired:
        """The same with its maps trained further."""
        from depthcut.repairs.training.weights import train_weights  # the Trainer takes a second to import

        rows = training_rows(damage.text, self.num_sequences, damage.seed)
        asked = 0 if self.train == "lm" else len(torch.unique(rows))
        damage = counting_sequences(damage, asked + self.num_sequences)
        names = [
            f"{path}.{name}"
            for path, module in solved.model.named_modules()
            if isinstance(module, Emulation)
            for name, _ in module.named_parameters()
        ]
        with training_folder(damage, self, solved.model) as folder, torch.enable_grad():
            goal: Goal = NextToken(damage.text)
            if self.train == "mse":
                goal = follow_stream(damage, rows, folder)
            elif self.train == "kd":
                goal = ask_teacher(damage, rows, self.top_k, folder)
            trained = train_weights(damage, solved.model, names, goal, self, self.learning_rate, folder)
        return replace(trained, units=solved.units)

    def _emulation(
        self,
        damage: Damage,
        moments: Moments,
        mean_stream: torch.Tensor,
        mean_added: torch.Tensor,
        matrix: torch.Tensor,
        left: torch.Tensor,
    ) -> tuple[Emulation, float]:
        """The best map of the rank, in the metric of what it predicts, and the share of the error it leaves."""
        explained = matrix @ moments.inputs @ matrix.T
        # Where there is no float64 there is no eigendecomposition either.
        _, directions = torch.linalg.eigh(explained if explained.dtype == torch.float64 else explained.cpu().double())
        kept = directions[:, -self.rank :].to(matrix)
        emulation = Emulation(len(mean_added), self.rank)
        multiplier = _branch_multiplier(damage)
        emulation.down.copy_(kept.T @ matrix)
        emulation.up.copy_(kept / multiplier)
        shift = kept @ (kept.T @ (matrix @ mean_stream.to(matrix)))
        emulation.bias.copy_((mean_added.to(matrix) - shift) / multiplier)
        return emulation, moments.share_left(kept @ kept.T @ matrix)


def _zeros(damage: Damage) -> dict[Unit, float]:
    return dict.fromkeys(damage.removed, 0.0)


def _branch_multiplier(damage: Damage) -> float:
    """What the family multiplies with whatever a branch gives, before it is added to the stream."""
    return float(getattr(damage.dense.model.config.get_text_config(), "residual_multiplier", 1.0))


def _visit_removed(damage: Damage, units: frozenset[Unit], visit: Visit) -> None:
    """Runs the dense model over the text and shows what the units read and add."""
    held_out = held_out_sequences(len(damage.text.input_ids))
    for begin in range(0, len(damage.text.input_ids), damage.batch_size):
        rows = slice(begin, begin + damage.batch_size)
        batch = damage.dense.prepare(damage.text.input_ids[rows], damage.text.attention_mask[rows])
        tokens = {
            part: batch.token_mask & (held_out[rows] == (part == HELD_OUT)).to(batch.token_mask.device)[:, None]
            for part in (FITTED, HELD_OUT)
        }

        def show(
            unit: Unit | int, before: torch.Tensor, after: torch.Tensor, tokens: Mapping[int, torch.Tensor] = tokens
        ) -> None:
            if isinstance(unit, Unit) and unit in units:
                for part, chosen in tokens.items():
                    of_part = chosen.to(before.device)
                    visit(unit, before[of_part], (after - before)[of_part], part)

        damage.dense.run(batch, visit=show)


def _means(damage: Damage) -> dict[Unit, tuple[torch.Tensor, torch.Tensor]]:
    """By removed unit the mean of the stream entering it and of what it added, (hidden,) each, over all tokens."""
    sums: dict[Unit, list[torch.Tensor]] = {}

    def add(unit: Unit, stream: torch.Tensor, added: torch.Tensor, _: int) -> None:
        exact = widest_type(stream.device)
        found = [stream.sum(dim=0, dtype=exact), added.sum(dim=0, dtype=exact)]
        sums[unit] = [old + new for old, new in zip(sums[unit], found, strict=True)] if unit in sums else found

    _visit_removed(damage, damage.removed, add)
    count = int(damage.text.attention_mask.sum())
    return {unit: (stream / count, added / count) for unit, (stream, added) in sums.items()}


def _in_groups(units: Sequence[Unit], bytes_each: int, budget: int) -> list[Sequence[Unit]]:
    """As many units together as fit the budget, at least one."""
    size = max(1, budget // bytes_each)
    return [units[begin : begin + size] for begin in range(0, len(units), size)]


def _replaced(damage: Damage, emulations: Mapping[Unit, Emulation]) -> PreTrainedModel:
    """The dense model with the removed units replaced, in its own dtype and place."""
    dense = damage.dense.model
    placed = {unit: emulation.to(dense.device, dense.dtype) for unit, emulation in emulations.items()}
    return apply(dense, damage.dense.architecture, damage.removed, placed)


REPAIRS.register("bias", Bias, summary="the mean of what was removed is added", source="Deeper Look, arXiv 2407.16286")
REPAIRS.register(
    "low-rank", LowRank, summary="a low-rank map in place of what was removed", source="Deeper Look, arXiv 2407.16286"
)
