"""What a run would do, without doing it: `--dry-run`. Nothing is written and nothing is searched."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from depthcut.methods.problem import Problem
from depthcut.model.flops import ModelWork, measure_work
from depthcut.model.load import ModelSource
from depthcut.model.units import empty_model
from depthcut.preview.device_profiles import HERE, DeviceProfile, check_profile, find_profile
from depthcut.preview.estimate import RunEstimate, estimate
from depthcut.process.memory import resident_bytes
from depthcut.run.decoding import memories
from depthcut.run.heads import settle_objective
from depthcut.run.plan import find_plan, make_plan
from depthcut.run.recipe import Recipe
from depthcut.run.room import find_room
from depthcut.run.session import find_model, load, pose_problem, prepare, settle_storage
from depthcut.run.texts import settle_texts
from depthcut.types import Cost, InputError, Plan, Unit


@dataclass(frozen=True)
class Preview:
    """What a run would do.

    Attributes:
        plan: None where only a search could tell, or scores of weights that are not here.
        device: what the hours are for.
        program_bytes: what Python and the libraries take of the same memory.
        decoding_bytes: by context in tokens, what weights and cache of the dense model and of the pruned one take; of
            the pruned one None where the plan is not known.
    """

    source: ModelSource
    problem: Problem
    plan: Plan | None
    estimate: RunEstimate
    device: DeviceProfile
    num_devices: int
    program_bytes: int
    decoding_bytes: dict[int, tuple[float, float | None]]


def preview(recipe: Recipe, *, device_profile: str = HERE, num_devices: int = 1) -> Preview:
    """What a run takes, and its plan where one pass at most finds it.

    Weights load only for the static scores. A directory with a configuration and no weights is estimated all the same.

    Args:
        device_profile: `here`, which is measured for a second, or a published device.

    Raises:
        InputError: the run would be refused before it searches, or there is no such profile.
    """
    recipe.check()
    check_profile(device_profile)
    if num_devices < 1:
        raise InputError(f"{num_devices} devices cannot run anything; give --devices 1 or more")
    recipe, source = settle_storage(recipe, find_model(recipe, needs_weights=False))
    recipe = settle_objective(recipe, source)
    work = measure_work(empty_model(source.config, source.dtype), source.architecture)
    device = find_profile(device_profile, source.dtype, work.hidden_size, work.widest)
    device_bytes = device.memory_bytes if device.on_accelerator else None
    recipe = settle_texts(recipe, source, device_bytes=device_bytes)
    problem = pose_problem(recipe, source)
    search = recipe.build_search()
    measured = problem.budget.kind == "increase" or problem.budget.is_timed
    program = 0 if device.on_accelerator else resident_bytes()
    plan = None
    if search.needs == "configuration" and not measured:
        plan = make_plan(recipe, source, problem, None, Cost())
    elif source.has_weights:
        prepared = prepare(recipe, source)
        if search.needs == "scores" and not measured:
            plan = find_plan(load(prepared), problem, None)[1]
    removed = plan.removed if plan else None
    expected = estimate_source(recipe, source, problem, work, removed, device_bytes=device_bytes)
    decoding = {}
    for context, memory in memories(source, problem.sizes).items():
        decoding[context] = (memory.without(()), None if removed is None else memory.without(removed))
    return Preview(source, problem, plan, expected, device, num_devices, program, decoding)


def estimate_source(
    recipe: Recipe,
    source: ModelSource,
    problem: Problem,
    work: ModelWork,
    removed: Collection[Unit] | None = None,
    *,
    device_bytes: float | None = None,
) -> RunEstimate:
    """The estimate of a run on a model that was found, with the room that it has.

    Args:
        removed: what will be removed, where that is known.
        device_bytes: of an accelerator other than the recipe's.
    """
    room = find_room(recipe, source.weight_bytes, device_bytes)
    return estimate(
        recipe,
        problem,
        work,
        room,
        removed=removed,
        weight_bytes=source.weight_bytes,
        gguf_bytes=(source.folder / source.gguf_file).stat().st_size if source.gguf_file else 0,
    )
