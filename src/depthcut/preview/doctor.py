"""What a model is, what can be done with it on this machine, and what a default run would take; no weights are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import get_args

from pydantic import Field

from depthcut.evaluation.engines import ENGINES, find_interpreter
from depthcut.export import EXPORTS, check_form
from depthcut.model.device import chosen_device
from depthcut.model.flops import measure_work
from depthcut.model.heads import GIVES, head_of
from depthcut.model.load import ModelSource
from depthcut.model.units import empty_model, sizes_from_config
from depthcut.model.wrappers import decoder_config, is_wrapper
from depthcut.preview.device_profiles import measure_here
from depthcut.preview.dry_run import estimate_source
from depthcut.repairs import REPAIRS, check_repairs
from depthcut.run.heads import settle_objective
from depthcut.run.recipe import Recipe
from depthcut.run.session import find_model, pose_problem
from depthcut.types import InputError, Provenance, Record, UnitChoice

DEFAULT_SHARE = "25%"
"""What a default run is taken to remove."""


class Choice(Record):
    """Something that a run can be asked for.

    Attributes:
        refusal: why this model or machine does not allow it; empty where it does.
    """

    name: str
    refusal: str = ""


class DefaultRun(Record):
    """What `depthcut prune MODEL --remove 25%` would take.

    Attributes:
        refusal: why it cannot be done; empty where it can.
        device: what the seconds are for.
        seconds: by stage, in order; timing, tasks and exports aside.
        memory_bytes: most that weights and the largest stage hold at a time.
    """

    refusal: str = ""
    device: str = ""
    seconds: dict[str, float] = Field(default_factory=dict)
    memory_bytes: float = 0.0


class Diagnosis(Record):
    """What is known of a model before its weights are read.

    Attributes:
        parts: what a block consists of, as kinds of unit.
        weight_bytes: of all weights in memory.
        kv_bytes_per_token: of the dense model, at a context shorter than any sliding window.
        context: tokens that it was made for; None where its configuration does not say it.
        gives: what it does with a text.
        carried: what stands around the decoder, where it stands inside of a larger model; empty where there is none.
        left_out: layers of its files that are not written; empty where there are none.
        has_weights: whether there are any, here or on the hub.
        units: what one step may remove.
    """

    model: Provenance
    base_model: str | None
    license: str | None
    parts: tuple[str, ...]
    parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    context: int | None
    gives: str
    carried: str
    left_out: str
    has_weights: bool
    units: tuple[Choice, ...]
    repairs: tuple[Choice, ...]
    exports: tuple[Choice, ...]
    engines: tuple[Choice, ...]
    default_run: DefaultRun


def examine_model(recipe: Recipe) -> Diagnosis:
    """Looks at a recipe's model as a run would until weights load; only the speed of this machine is measured.

    Args:
        recipe: names the model and the device, and says what a default run removes.

    Raises:
        InputError: nothing can be done with the model.
    """
    source = find_model(recipe, needs_weights=False)
    recipe = settle_objective(recipe, source)
    sizes = sizes_from_config(source.config, source.architecture, source.dtype)
    whole = type(source.config).__name__.removesuffix("Config")
    return Diagnosis(
        model=source.provenance,
        base_model=source.base_model,
        license=source.license,
        parts=tuple(source.architecture.branches),
        parameters=sizes.parameters,
        weight_bytes=source.weight_bytes,
        kv_bytes_per_token=sizes.kv_bytes_per_token,
        context=getattr(decoder_config(source.config), "max_position_embeddings", None),
        gives=GIVES[head_of(source.config)],
        carried=f"the decoder stands inside of a {whole}, which is kept" if is_wrapper(source.config) else "",
        left_out=str(source.prediction_layers or ""),
        has_weights=source.has_weights,
        units=_choices(get_args(UnitChoice), lambda unit: pose_problem(_with(recipe, unit=unit), source)),
        repairs=_choices(
            [entry.name for entry in REPAIRS],
            lambda name: check_repairs([(name, REPAIRS.find(name).make())], source.architecture, source.config),
        ),
        exports=_choices(
            [entry.name for entry in EXPORTS], lambda name: check_form(name, EXPORTS.find(name).make(), source.config)
        ),
        engines=tuple(
            Choice(name=name, refusal="" if find_interpreter(name) else f"not installed; run: {engine.install}")
            for name, engine in ENGINES.items()
        ),
        default_run=_default_run(recipe, source),
    )


def _with(recipe: Recipe, **changes: object) -> Recipe:
    return recipe.model_copy(update=changes)


def _choices(names: Iterable[str], check: Callable[[str], object]) -> tuple[Choice, ...]:
    """Every name with what a check says against it."""

    def refusal(name: str) -> str:
        try:
            check(name)
        except InputError as error:
            return str(error)
        return ""

    return tuple(Choice(name=name, refusal=refusal(name)) for name in names)


def _default_run(recipe: Recipe, source: ModelSource) -> DefaultRun:
    try:
        problem = pose_problem(recipe, source)
    except InputError as error:
        return DefaultRun(refusal=str(error))
    work = measure_work(empty_model(source.config, source.dtype), source.architecture)
    device = chosen_device(recipe.device)
    expected = estimate_source(recipe, source, problem, work)
    here = measure_here(source.dtype, work.hidden_size, work.widest, device=device)
    held = expected.weight_bytes if expected.held_bytes is None else expected.held_bytes
    return DefaultRun(
        device=here.name,
        seconds={phase.name: expected.seconds(phase, here) for phase in expected.phases},
        memory_bytes=held + max((phase.working_bytes + phase.host_bytes for phase in expected.phases), default=0.0),
    )
