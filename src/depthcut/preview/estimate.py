"""What a run will take, before weights load: work, memory and hours of each stage, from the configuration alone.

Floating-point operations follow from the units that run (`model/flops.py`) and from what each search says of itself
(`Search.estimate`). Memory is what is kept by design, and the largest temporaries beside it. Of repairs only the order
of magnitude is known: what they try depends on what helps. Not counted: timing, tasks, generation, further formats, and
what a training keeps of activations and gradients.

Assumptions where a device is named: several devices share the work evenly, each with a process of its own; of weights
that do not fit into the memory of one of them, what does not stay there comes into each once for every sweep, which is
a round of a search or a pass over a text.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from depthcut.ablation.memory import EXCERPTS_SHARE_OF_BUDGET, FLOAT_BYTES, Kept, kept_of
from depthcut.ablation.objectives import POSITIONS_AT_ONCE
from depthcut.ablation.prefix_cache import units_per_position
from depthcut.importance import passes_of
from depthcut.methods.greedy import Greedy
from depthcut.methods.problem import Problem
from depthcut.model.flops import ModelWork
from depthcut.model.stream import LOGIT_BYTES
from depthcut.preview.device_profiles import DeviceProfile
from depthcut.process.memory import Room
from depthcut.repairs.moments import Moments
from depthcut.repairs.seam import CHECKS, MOST_JUDGING, Seam
from depthcut.run.plan import HELD_OUT_SHARE, search_batch_size
from depthcut.run.recipe import Recipe
from depthcut.run.texts import USES, num_written, written_at_once
from depthcut.types import Cost, Unit

REFIT_PASSES = 3.0
"""Forward passes of both models over its text that a repair in closed form takes."""
TRAINING_PASSES = 3.0
"""Forward passes that a step forward and back costs."""
SLOWER_BY_TOKENS = 2.5
"""How much longer the same arithmetic takes a token of 32 or 64 sequences at a time: on SmolLM2 2 in float32, 3 in
bfloat16, by processor seconds."""
SEAMS_A_STEP = 0.4
"""Removed runs for each step of a search, as measured on SmolLM2: neighbours go together."""
HOUR = 3600.0


@dataclass(frozen=True)
class Phase:
    """One stage of a run.

    Attributes:
        forward_passes: over the whole text of the stage, counted by the units that run.
        unit_evaluations: single attentions or FFNs run on one sequence.
        sweeps: times that weights have to come in where they do not fit into memory.
        weights_read: bytes that arithmetic reads of weights in memory.
        working_bytes: most that the stage holds at a time beside the weights.
        host_bytes: what it holds in the memory of the CPU, wherever the model is.
    """

    name: str
    forward_passes: float = 0.0
    unit_evaluations: int = 0
    flops: float = 0.0
    sweeps: float = 0.0
    weights_read: float = 0.0
    working_bytes: float = 0.0
    host_bytes: float = 0.0


@dataclass(frozen=True)
class RunEstimate:
    """What a run will take.

    Attributes:
        weight_bytes: of the dense model.
        pruned_bytes: of the pruned model, and so about of the output; None where only the search can tell.
        held_bytes: of weights that are in a device's memory at a time; None where all are.
        coming_bytes: of weights that come in for a sweep.
        phases: in order.
    """

    weight_bytes: float
    pruned_bytes: float | None
    held_bytes: float | None
    coming_bytes: float
    phases: tuple[Phase, ...]

    @property
    def flops(self) -> float:
        return sum(phase.flops for phase in self.phases)

    def memory_bytes(self, device: DeviceProfile) -> float:
        """Most that a run holds at a time in a device's memory, Python and its libraries aside."""
        held = self.weight_bytes if self.held_bytes is None else self.held_bytes
        shared = 0 if device.on_accelerator else 1
        return held + max(phase.working_bytes + shared * phase.host_bytes for phase in self.phases)

    def seconds(self, phase: Phase, device: DeviceProfile, num_devices: int = 1) -> float:
        """Seconds of the slowest of arithmetic, memory traffic and reading weights in."""
        rates = [(phase.flops, device.flops_per_second), (phase.weights_read, device.memory_bytes_per_second)]
        shared = max(amount / (rate * num_devices) for amount, rate in rates)
        loading = self.weight_bytes if phase.name == "load" else 0.0
        return (
            max(shared, phase.sweeps * self.coming_bytes / device.host_bytes_per_second)
            + loading / device.host_bytes_per_second
        )

    def hours(self, device: DeviceProfile, num_devices: int = 1) -> float:
        return sum(self.seconds(phase, device, num_devices) for phase in self.phases) / HOUR


def estimate(
    recipe: Recipe,
    problem: Problem,
    work: ModelWork,
    room: Room,
    *,
    weight_bytes: int,
    removed: Collection[Unit] | None = None,
    gguf_bytes: int = 0,
) -> RunEstimate:
    """The estimate of one run.

    Args:
        work: of the recipe's model.
        room: what the run may take of memory.
        weight_bytes: of the model as it is loaded.
        removed: what will be removed, where that is known.
        gguf_bytes: of the file, where the weights have to be dequantised.
    """
    run = _Run(recipe, problem, work, room, weight_bytes)
    phases = [run.load(gguf_bytes), *run.write(), run.score()]
    search = recipe.build_search()
    if search.needs == "objective" or problem.budget.kind == "increase":
        phases.append(run.search(search.estimate(problem, recipe.calibration_samples)))
    phases += [run.repair(), run.evaluate()] if recipe.repairs else [run.evaluate()]
    return RunEstimate(run.weight_bytes, run.pruned_bytes(removed), room.weights, run.coming_bytes, tuple(phases))


class _Run:
    """The stages of one recipe's run."""

    def __init__(self, recipe: Recipe, problem: Problem, work: ModelWork, room: Room, weight_bytes: int) -> None:
        self.recipe, self.problem, self.work, self.room = recipe, problem, work, room
        self.itemsize = work.itemsize
        self.num_sequences, self.length = recipe.calibration_samples, recipe.calibration_length
        self.weight_bytes = float(weight_bytes)
        self.num_units = len(problem.units)

    def load(self, gguf_bytes: int) -> Phase:
        """Weights in safetensors are mapped; those of a GGUF are read whole, and each is there twice in float32."""
        largest = self._hidden * max(self.work.vocabulary, self.work.widest)
        return Phase("load", sweeps=1, host_bytes=gguf_bytes + 2 * FLOAT_BYTES * largest if gguf_bytes else 0)

    def write(self) -> list[Phase]:
        """What the model writes itself, a token of every sequence at a time."""
        sequences = max(
            (num_written(self.recipe, use) for use in USES if use != "repair" or self.recipe.repairs), default=0
        )
        if not sequences:
            return []
        at_once, working = written_at_once(self.problem.sizes, self.work.vocabulary, self.length, self.room.kept)
        phase = self._passes("write", 1.0, 1.0, sequences, self.length, working, at_once)
        steps = -(-sequences // at_once) * self.length
        return [
            replace(phase, flops=SLOWER_BY_TOKENS * phase.flops, sweeps=steps, weights_read=steps * self.weight_bytes)
        ]

    def score(self) -> Phase:
        """One pass without the vocabulary projection; streams are measured in float32, four of them at a time.

        A metric by gradients takes its own passes with the projection, and keeps gradients, their sum, and of a
        sequence all logits with theirs.
        """
        rows = min(self.recipe.batch_size, self.num_sequences)
        measured = rows * self.length * self.work.hidden_size * 8 * FLOAT_BYTES + self._block_bytes(rows)
        more = float(sum(map(passes_of, self.recipe.metrics)))
        if more:
            parameters = sum(size.parameters for size in self.problem.sizes.units.values())
            logits = 3 * self.length * self.work.vocabulary * FLOAT_BYTES
            measured = max(measured, parameters * (self.itemsize + FLOAT_BYTES) + logits)
        return self._passes("score", 1.0 + more, more, self.num_sequences, self.length, measured)

    def search(self, cost: Cost) -> Phase:
        """What the search says of itself, one vocabulary projection a candidate and one of the dense model."""
        sequences, length = self.num_sequences, self.length
        if self.problem.budget.kind == "increase":
            # Each step is measured on text of its own too.
            steps = self.problem.likely_steps
            cost = Cost(
                unit_evaluations=cost.unit_evaluations + sequences * steps * self.num_units // HELD_OUT_SHARE // 2,
                candidate_evaluations=cost.candidate_evaluations + steps // HELD_OUT_SHARE,
            )
        whole = self._kept(sequences, self.room.kept)
        kept = whole.most_bytes
        dense = 1.0
        search = self.recipe.build_search()
        if isinstance(search, Greedy) and search.strategy == "lazy":
            fraction = search.pilot_fraction
            kept += whole.next_bytes
            kept += self._kept(fraction * sequences, self.room.kept // EXCERPTS_SHARE_OF_BUDGET).most_bytes
            dense += fraction
        projections = cost.candidate_evaluations * (1 if whole.all_references else 2) + dense
        rows = search_batch_size(self.recipe, sequences)
        passes = cost.unit_evaluations / (sequences * self.num_units)
        phase = self._passes("search", passes, projections, sequences, length, kept + self._logit_bytes(rows, 1), rows)
        # The dense pass keeps streams before the first round.
        return replace(phase, unit_evaluations=cost.unit_evaluations, sweeps=1 + self.problem.likely_steps)

    def repair(self) -> Phase:
        """Passes of both models over the text and the sums that matrices are solved from, or the steps of a training.

        Before each removed run a few changes are tried on an eighth of the text; that is counted as half a pass each.
        """
        sequences, length = self.recipe.num_repair_samples, self.length
        passes, projections, moments = 0.0, 0.0, 0.0
        for _, method in self.recipe.repairs:
            if isinstance(method, Seam):
                # The streams are brought from seam to seam; a check runs the whole model on a few sequences.
                seams = max(1.0, SEAMS_A_STEP * self.problem.likely_steps)
                trained = seams * method.num_sequences * (method.before + method.behind) / self.num_units
                checked = seams * CHECKS * min(MOST_JUDGING, sequences // 8)
                passes += 3 + (TRAINING_PASSES * trained + checked) / sequences
                projections += checked / sequences
            elif method.num_sequences:
                steps = method.num_sequences / sequences
                passes += TRAINING_PASSES * steps
                projections += TRAINING_PASSES * steps
            else:
                runs = self.problem.likely_steps
                passes += REFIT_PASSES + runs / 16
                projections += 0.25 + runs / 8
                moments += 2 * runs * sequences * length * 2 * self.work.widest * (self.work.widest + self._hidden)
        streams = min(2 * sequences * length * self._hidden * self.itemsize, self.room.kept)
        solved = Moments.bytes(self.work.widest, self._hidden) if moments else 0
        if self.room.solving is not None:
            solved = min(solved, self.room.solving)
        references = self.room.kept // 4
        working = streams + min(references, sequences // 8 * length * self.work.vocabulary * FLOAT_BYTES)
        phase = self._passes(
            "repair", passes, projections, sequences, length, working + self._logit_bytes(self.recipe.batch_size, 1)
        )
        return replace(phase, flops=phase.flops + moments, host_bytes=solved)

    def evaluate(self) -> Phase:
        """Every model on the evaluation text, a piece of the logits of all of them at a time."""
        sequences, length = self.recipe.evaluation_samples, self.recipe.evaluation_length
        others = 1 + bool(self.recipe.repairs) + len(self.recipe.compare)
        left = 1 - self.problem.likely_steps / max(1, self.problem.num_removable)
        passes = 1 + others * max(0.0, left)
        return self._passes(
            "evaluate", passes, 1.0 + others, sequences, length, self._logit_bytes(1, 1 + others), rows=1
        )

    def pruned_bytes(self, removed: Collection[Unit] | None) -> float | None:
        """Bytes of the pruned model; with units of mean size removed, where the plan is not known."""
        sizes, problem = self.problem.sizes, self.problem
        parameter_bytes = self.weight_bytes / sizes.parameters
        if removed is not None:
            return parameter_bytes * sizes.parameters_without(removed)
        candidates = problem.candidates()
        if problem.budget.kind == "increase" or not candidates:
            return None
        mean = sum(sizes.units[unit].parameters for group in candidates for unit in group) / len(candidates)
        return parameter_bytes * (sizes.parameters - problem.likely_steps * mean)

    @property
    def coming_bytes(self) -> float:
        """Bytes that come in for a sweep: what does not stay, also the two blocks that have room beside what does."""
        if self.room.weights is None:
            return 0.0
        num_blocks = 1 + max(unit.layer for unit in self.problem.units)
        return max(0.0, self.weight_bytes - self.room.weights + 2 * self.weight_bytes / num_blocks)

    @property
    def _hidden(self) -> int:
        return self.work.hidden_size

    def _passes(
        self,
        name: str,
        passes: float,
        projections: float,
        sequences: int,
        length: int,
        working_bytes: float,
        rows: int | None = None,
    ) -> Phase:
        """A stage of forward passes over a text.

        Args:
            projections: to the vocabulary, in passes over the text.
            rows: sequences run together.
        """
        blocks, logits = self.work.block_flops(length), self.work.logit_flops * length
        projection_bytes = self.work.vocabulary * self._hidden * self.itemsize
        batches = -(-sequences // (rows or self.recipe.batch_size))
        block_bytes = self.weight_bytes - projection_bytes
        return Phase(
            name=name,
            forward_passes=passes,
            unit_evaluations=round(passes * sequences * self.num_units),
            flops=sequences * (passes * blocks + projections * logits),
            sweeps=passes,
            weights_read=batches * (passes * block_bytes + projections * projection_bytes),
            working_bytes=working_bytes,
        )

    def _kept(self, sequences: float, budget: int) -> Kept:
        """What an objective keeps of a text."""
        return kept_of(
            sequences * self.length,
            self._hidden * self.itemsize,
            self.work.vocabulary,
            num_units=self.num_units,
            per_position=units_per_position(self.problem.architecture),
            budget=budget,
        )

    def _block_bytes(self, rows: int) -> float:
        """The largest temporaries inside a block."""
        return rows * self.length * (3 * self.work.widest + 4 * self._hidden) * self.itemsize

    def _logit_bytes(self, rows: int, models: int) -> float:
        """Pieces of logits, of which the last and the next are there at a time, and a few positions in float32."""
        piece = min(LOGIT_BYTES // FLOAT_BYTES, rows * self.length * self.work.vocabulary)
        several = 1 if piece < LOGIT_BYTES // FLOAT_BYTES else 2
        return models * (several * piece * self.itemsize + 4 * POSITIONS_AT_ONCE * self.work.vocabulary * FLOAT_BYTES)
