"""What is said before long work begins: about how long a run will take on this machine, and which stage most of it."""

from __future__ import annotations

from dataclasses import dataclass

from depthcut.methods.problem import Problem
from depthcut.model.device import chosen_device
from depthcut.model.flops import measure_work
from depthcut.model.load import ModelSource
from depthcut.model.units import empty_model
from depthcut.preview.device_profiles import measure_here
from depthcut.preview.dry_run import estimate_source
from depthcut.run.recipe import Recipe

SHORT_FLOPS = 1e12
"""Work that is over before anyone asks how long it takes: some ten seconds of two cores."""


@dataclass(frozen=True)
class Outlook:
    """How long a run will take.

    Attributes:
        device: what was measured, for people.
        stages: seconds by stage, in order; timing, tasks and exports aside.
    """

    device: str
    stages: dict[str, float]

    @property
    def seconds(self) -> float:
        return sum(self.stages.values())


def outlook(recipe: Recipe, source: ModelSource, problem: Problem) -> Outlook | None:
    """The outlook of a run, from its estimate and the speed of this machine, which is measured for a second.

    Returns:
        None where the work is short.
    """
    work = measure_work(empty_model(source.config, source.dtype), source.architecture)
    device = chosen_device(recipe.device)
    expected = estimate_source(recipe, source, problem, work)
    if expected.flops < SHORT_FLOPS:
        return None
    here = measure_here(source.dtype, work.hidden_size, work.widest, device=device)
    return Outlook(here.name, {phase.name: expected.seconds(phase, here) for phase in expected.phases})
