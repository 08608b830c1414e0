"""The command line: words to options to the pipeline, and its results to a terminal; nothing else is decided here."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from safetensors import SafetensorError

from depthcut.eval_command import evaluate
from depthcut.export import VerificationError
from depthcut.merge_command import merge
from depthcut.options import (
    BatchSize,
    BudgetOption,
    Calibration,
    CalibrationLength,
    CalibrationSamples,
    Compare,
    Device,
    DeviceProfileOption,
    Devices,
    DryRun,
    Dtype,
    Evaluation,
    EvaluationLength,
    EvaluationSamples,
    Forms,
    Generation,
    IncludePath,
    Limit,
    MaxForwards,
    MaxIncrease,
    MemoryBudget,
    Method,
    Metric,
    Model,
    NumFewshot,
    ObjectiveOption,
    Output,
    Overwrite,
    Protect,
    PushToHub,
    Recover,
    RecoverSamples,
    RecoverText,
    Remove,
    Revision,
    SearchOption,
    SearchRecover,
    Seed,
    ShardOption,
    Speed,
    Swap,
    Tasks,
    TrustRemoteCode,
    UnitOption,
    comma_separated,
)
from depthcut.study_command import app as study_app
from depthcut.study_command import print_study
from depthcut.terminal import print_measurements, print_preview, removal_names
from depthcut.types import GenerationSample, InputError, LostRankError, Measurement, Plan, Repair, ScoreTable

if TYPE_CHECKING:
    from depthcut.recipe import Recipe

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe by name (see depthcut ls), or options as YAML in a file.")
]

INTERRUPTED = 130
"""The exit code that typer makes of Ctrl-C."""
TERMINATED = 128 + signal.SIGTERM

app = typer.Typer(
    name="depthcut",
    help="Makes large language models shallower: finds the blocks and sublayers that can go, removes them for real, "
    "measures what is left.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("eval")(evaluate)
app.command("merge")(merge)
app.add_typer(study_app, name="study")


def _print_version(wanted: bool) -> None:
    if wanted:
        from depthcut import __version__

        print(f"depthcut {__version__}")
        raise typer.Exit


@app.callback()
def _before_any_command(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    if context.invoked_subcommand not in ("prune", "run"):
        _require_alone(f"depthcut {context.invoked_subcommand}")


@app.command()
def prune(
    model: Model,
    output_dir: Output,
    method: Method = "greedy",
    metric: Metric = None,
    objective: ObjectiveOption = None,
    search: SearchOption = None,
    swap: Swap = None,
    max_forwards: MaxForwards = None,
    unit: UnitOption = None,
    remove: Remove = None,
    budget: BudgetOption = None,
    max_increase: MaxIncrease = None,
    protect: Protect = "",
    calibration: Calibration = "stdlib",
    calibration_samples: CalibrationSamples = 16,
    calibration_length: CalibrationLength = 512,
    evaluation: Evaluation = "stdlib",
    evaluation_samples: EvaluationSamples = 16,
    evaluation_length: EvaluationLength = 512,
    tasks: Tasks = "",
    num_fewshot: NumFewshot = None,
    limit: Limit = None,
    include_path: IncludePath = None,
    generation: Generation = False,
    compare: Compare = "",
    export: Forms = "",
    recover: Recover = None,
    recover_text: RecoverText = None,
    recover_samples: RecoverSamples = None,
    search_recover: SearchRecover = False,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch_size: BatchSize = 4,
    memory_budget: MemoryBudget = None,
    speed: Speed = True,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    push_to_hub: PushToHub = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    shard: ShardOption = None,
    dry_run: DryRun = False,
    device_profile: DeviceProfileOption = None,
    devices: Devices = None,
) -> None:
    """Find what can go, remove it, measure what is left, and write a model that reloads.

    SOURCE is a built-in text (stdlib, self, wikitext, c4), a hub data set or a file, with settings after commas:
    wikitext, allenai/c4,config=en or notes.jsonl,column=body. Several are joined with +.
    """
    recipe = _recipe(
        model=model,
        method=method,
        metric=metric,
        objective=objective,
        search=search,
        swap=swap,
        max_forwards=max_forwards,
        unit=unit,
        remove=remove,
        budget=budget,
        max_increase=max_increase,
        protect=comma_separated(protect),
        calibration=calibration,
        calibration_samples=calibration_samples,
        calibration_length=calibration_length,
        evaluation=evaluation,
        evaluation_samples=evaluation_samples,
        evaluation_length=evaluation_length,
        tasks=comma_separated(tasks),
        num_fewshot=num_fewshot,
        limit=limit,
        include_path=include_path,
        generation=generation,
        compare=comma_separated(compare),
        export=comma_separated(export),
        recover=recover,
        recover_text=recover_text,
        recover_samples=recover_samples,
        search_recover=search_recover,
        revision=revision,
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        device=device,
        batch_size=batch_size,
        memory_budget=memory_budget,
        speed=speed,
        seed=seed,
    )
    if dry_run or device_profile is not None or devices is not None:
        _preview(recipe, output_dir, overwrite, resume, dry_run, device_profile, devices)
        return
    _run(recipe, output_dir, overwrite=overwrite, resume=resume, push_to_hub=push_to_hub, shard=shard)


@app.command()
def run(
    recipe: RecipeName,
    output_dir: Output,
    small: Annotated[bool, typer.Option("--small", help="The recipe's variant for a CPU: a minute or two.")] = False,
    overwrite: Overwrite = False,
    push_to_hub: PushToHub = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    shard: ShardOption = None,
    dry_run: DryRun = False,
    device_profile: DeviceProfileOption = None,
    devices: Devices = None,
) -> None:
    """Run prune or a study from a recipe."""
    from depthcut.recipes import find_recipe, load_recipe
    from depthcut.studies.recipe import StudyRecipe

    loaded = load_recipe(find_recipe(recipe), small=small)
    if isinstance(loaded, StudyRecipe):
        if dry_run or push_to_hub:
            raise InputError("a study writes no model and has no plan to print; leave --dry-run and --push-to-hub out")
        _require_alone("a study")
        loaded.check()
        print_study(loaded.run(output_dir, overwrite=overwrite, resume=resume, command=_command_line()), output_dir)
        return
    if dry_run or device_profile is not None or devices is not None:
        _preview(loaded, output_dir, overwrite, resume, dry_run, device_profile, devices)
        return
    _run(loaded, output_dir, overwrite=overwrite, resume=resume, push_to_hub=push_to_hub, shard=shard)


@app.command()
def score(
    model: Model,
    output_dir: Output,
    calibration: Calibration = "stdlib",
    calibration_samples: CalibrationSamples = 16,
    calibration_length: CalibrationLength = 512,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch_size: BatchSize = 4,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Score every block and sublayer by every static metric in one pass; writes scores.json."""
    from depthcut import pipeline

    recipe = _recipe(
        model=model,
        calibration=calibration,
        calibration_samples=calibration_samples,
        calibration_length=calibration_length,
        revision=revision,
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        device=device,
        batch_size=batch_size,
        seed=seed,
    )
    _print_scores(pipeline.score(recipe, output_dir, overwrite=overwrite))
    print(f"\nwritten to {output_dir / 'scores.json'}")


@app.command()
def apply(
    context: typer.Context,
    model: Model,
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN.json", help="A plan for this model.")],
    output_dir: Output,
    steps: Annotated[int | None, typer.Option(help="Apply only the first steps of the path.")] = None,
    to: Annotated[
        str, typer.Option(help="hf, or gguf: prune a .gguf as it is, its tensors copied byte for byte, unmeasured.")
    ] = "hf",
    evaluation: Evaluation = "stdlib",
    evaluation_samples: EvaluationSamples = 16,
    evaluation_length: EvaluationLength = 512,
    recover: Recover = "none",
    recover_text: RecoverText = None,
    recover_samples: RecoverSamples = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    speed: Speed = True,
    overwrite: Overwrite = False,
    push_to_hub: PushToHub = None,
) -> None:
    """Apply a plan that was found before, or its first steps."""
    if to != "hf":
        _apply_to_gguf(context, to, model, plan_file, output_dir, steps, overwrite)
        return
    from depthcut import pipeline

    _check_push(push_to_hub)
    recipe = _recipe(
        model=model,
        evaluation=evaluation,
        evaluation_samples=evaluation_samples,
        evaluation_length=evaluation_length,
        recover=recover,
        recover_text=recover_text,
        recover_samples=recover_samples,
        revision=revision,
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        device=device,
        speed=speed,
    )
    plan = Plan.from_file(plan_file)
    result = pipeline.apply_plan(
        recipe, plan, output_dir, num_steps=steps, overwrite=overwrite, command=_command_line()
    )
    _print_result(result, output_dir)
    _push(output_dir, push_to_hub)


def _apply_to_gguf(
    context: typer.Context, to: str, model: str, plan_file: Path, output: Path, steps: int | None, overwrite: bool
) -> None:
    from depthcut.apply_gguf import apply_to_gguf
    from depthcut.registry import unknown_name

    if to != "gguf":
        raise InputError(unknown_name("form to apply a plan to", to, ["gguf", "hf"]))
    for name in context.params.keys() - {"model", "plan_file", "output_dir", "steps", "to", "overwrite"}:
        if getattr(context.get_parameter_source(name), "name", "DEFAULT") != "DEFAULT":
            option = name.replace("_", "-")
            raise InputError(f"with --to gguf tensors are copied and nothing is measured, so leave --{option} out")
    file, measurements = apply_to_gguf(model, Plan.from_file(plan_file), output, num_steps=steps, overwrite=overwrite)
    print_measurements(measurements)
    print(f"\nkept tensors equal the source's byte for byte\nwritten to {file}")


@app.command()
def export(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A model directory, or any model.")],
    output_dir: Output,
    to: Annotated[str, typer.Option(help="Form to write: hf, gguf, nemotron-nas or zeroed (see depthcut ls).")] = "hf",
    tensor_type: Annotated[
        str | None,
        typer.Option(help="For gguf: f32, f16, bf16, q8_0, or a type of your llama-quantize; by default the model's."),
    ] = None,
    dtype: Dtype = "auto",
    overwrite: Overwrite = False,
    push_to_hub: PushToHub = None,
) -> None:
    """Write a model in another form or precision, verified in a fresh process."""
    from depthcut import pipeline

    _check_push(push_to_hub)
    note = pipeline.export(directory, to, output_dir, dtype=dtype, tensor_type=tensor_type, overwrite=overwrite)
    print("\n".join(filter(None, [f"written to {output_dir}", note])))
    _push(output_dir, push_to_hub)


@app.command()
def report(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Directories that prune or apply wrote.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="By default DIR/report.html; of several runs a name to give.")
    ] = None,
) -> None:
    """Make the report page again from a run's artefacts, or one page of several runs side by side."""
    from depthcut.report import Run, write_comparison, write_report

    runs = [Run.from_directory(directory) for directory in directories]
    if len(runs) == 1:
        target = output or directories[0] / "report.html"
        write_report(target, runs[0])
    elif output is None:
        raise InputError(f"{len(runs)} runs go on a page of their own; name it with --output")
    else:
        target = output
        write_comparison(target, runs)
    print(f"written to {target}")


@app.command("ls")
def list_names() -> None:
    """List recipes, packaged models, texts, methods, metrics and model families."""
    from rich.console import Console
    from rich.table import Table

    from depthcut.calibration import BUILT_IN
    from depthcut.export import EXPORTS
    from depthcut.importance.static import BLOCK_INFLUENCE, METRICS
    from depthcut.model.architectures import FAMILIES
    from depthcut.model.files import PACKAGED_MODELS
    from depthcut.objectives import OBJECTIVES
    from depthcut.recipes import packaged_recipes
    from depthcut.recovery import RECOVERIES
    from depthcut.search.problem import SEARCHES

    console = Console()
    sections = {
        "methods (--method)": [(entry.name, entry.summary, entry.source) for entry in SEARCHES],
        "metrics (--metric)": [
            (BLOCK_INFLUENCE, METRICS["cosine"] + ", for blocks", ""),
            *((name, meaning, "") for name, meaning in METRICS.items()),
        ],
        "packaged models": [(name, model.base_model, model.install) for name, model in PACKAGED_MODELS.items()],
        "texts (SOURCE)": [(name, part.summary, "") for name, part in BUILT_IN.items()],
        "objectives (--objective)": [(name, objective.measure, "") for name, objective in OBJECTIVES.items()],
        "repairs (--recover)": [(entry.name, entry.summary, entry.source) for entry in RECOVERIES],
        "export forms (--to)": [(entry.name, entry.summary, entry.source) for entry in EXPORTS],
        "recipes (depthcut run NAME)": [(recipe.name, recipe.summary, "") for recipe in packaged_recipes()],
    }
    for title, rows in sections.items():
        table = Table(title=title, title_justify="left", show_header=False, box=None)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print()
    console.print("families:", ", ".join(sorted(FAMILIES)))


@app.command()
def validate(
    file: Annotated[
        str, typer.Argument(help="A recipe by name or file (.yaml), plan.json, scores.json or results.json.")
    ],
) -> None:
    """Check a recipe or an artefact without running anything."""
    from depthcut.recipes import check_recipe, find_recipe
    from depthcut.types import read_generation, read_measurements, read_repairs

    path = Path(file)
    if path.suffix != ".json":
        check_recipe(find_recipe(file))
    elif path.name == "scores.json":
        ScoreTable.from_file(path)
    elif path.name == "results.json":
        read_measurements(path)
    elif path.name == "recovery.json":
        read_repairs(path)
    elif path.name == "generation.json":
        read_generation(path)
    else:
        Plan.from_file(path)
    print(f"{file} is valid")


@app.command()
def schema(
    name: Annotated[str, typer.Argument(help="recipe, plan, scores, results, recovery or generation.")] = "recipe",
) -> None:
    """Print the JSON schema of a recipe or an artefact."""
    import json

    from depthcut.recipe import Recipe
    from depthcut.registry import unknown_name

    lists = {"results": Measurement, "recovery": Repair, "generation": GenerationSample}
    records = {"recipe": Recipe, "plan": Plan, "scores": ScoreTable, **lists}
    if name not in records:
        raise InputError(unknown_name("schema", name, list(records)))
    found: dict[str, Any] = records[name].model_json_schema()  # type: ignore[attr-defined]
    print(json.dumps({"type": "array", "items": found} if name in lists else found, indent=2))


def _recipe(**options: object) -> Recipe:
    from depthcut.recipe import Recipe

    return Recipe.build(**options)


def _preview(
    recipe: Recipe,
    output: Path,
    overwrite: bool,
    resume: bool,
    dry_run: bool,
    device_profile: str | None,
    devices: int | None,
) -> None:
    _require_alone("--dry-run")
    from depthcut.model.device_profiles import HERE
    from depthcut.preview import preview
    from depthcut.workspace import check_output

    if not dry_run:
        raise InputError("--device-profile and --devices are about what --dry-run estimates; add it, or leave them out")
    check_output(output, overwrite=overwrite, resume=resume)
    num_devices = 1 if devices is None else devices
    print_preview(preview(recipe, device_profile=device_profile or HERE, num_devices=num_devices), recipe)


def _run(
    recipe: Recipe, output: Path, *, overwrite: bool, resume: bool, push_to_hub: str | None, shard: str | None
) -> None:
    if shard is not None:
        _evaluate_share(recipe, output, shard, overwrite=overwrite, push_to_hub=push_to_hub)
        return
    from depthcut import pipeline

    _check_push(push_to_hub)
    result = pipeline.prune(recipe, output, overwrite=overwrite, resume=resume, command=_command_line())
    if result.output is None:
        return
    _print_result(result, output)
    for form in recipe.export:
        if form not in dict(result.not_written):
            print(f"{form} written to {output / form}, verified")
    for form, reason in result.not_written:
        print(f"depthcut: {form} was not written: {reason}", file=sys.stderr)
    _push(output, push_to_hub)
    if result.not_written:
        raise typer.Exit(1)


def _evaluate_share(recipe: Recipe, output: Path, shard: str, *, overwrite: bool, push_to_hub: str | None) -> None:
    from depthcut.distributed import Shard
    from depthcut.shards import evaluate_share

    _require_alone("a shard, which meets no other,")
    if overwrite or push_to_hub:
        raise InputError("a shard writes no model; leave --overwrite and --push-to-hub out with --shard")
    print(evaluate_share(recipe, output, Shard.parse(shard)))


def _check_push(repository: str | None) -> None:
    if repository is not None:
        from depthcut.export.hub import check_push

        check_push(repository)


def _push(folder: Path, repository: str | None) -> None:
    if repository is None:
        return
    from depthcut.export.hub import PushError, push

    try:
        print(f"pushed to {push(folder, repository)}")
    except PushError as error:
        print(f"depthcut: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


def _command_line() -> str:
    return shlex.join(["depthcut", *sys.argv[1:]])


def _print_result(result: Any, output: Path) -> None:
    from depthcut.model.paging import pager_of

    plan: Plan = result.plan
    print(f"\nremoved ({plan.unit}, {plan.method}): {' '.join(removal_names(plan)) or 'nothing'}\n")
    print_measurements(result.measurements)
    for repair in result.repairs:
        outcome = "" if repair.kept else "; it did not help and was undone"
        print(
            f"{repair.method}: {repair.objective} {repair.before:.3f} -> {repair.after:.3f} on held-out text{outcome}"
        )
    paged = pager_of(result.model) is not None
    equal = "tensors equal bit for bit, logits to rounding" if paged else "logits equal bit for bit"
    print(f"\nreloaded in a fresh process: {equal}, greedy tokens equal with and without cache")
    print(f"model and report.html written to {output}")


def _print_scores(table: ScoreTable) -> None:
    from rich.console import Console
    from rich.table import Table

    blocks = [scores for scores in table.scores if scores.unit == "block"]
    view = Table(box=None, pad_edge=False)
    view.add_column("block", justify="right")
    for scores in blocks:
        view.add_column(scores.metric, justify="right")
    for layer in range(table.model.num_blocks):
        view.add_row(str(layer), *(f"{scores.values[str(layer)]:.4f}" for scores in blocks))
    Console(width=None if sys.stdout.isatty() else 120).print(view)


def main() -> None:
    """Runs the command line.

    A bad input, a full disk or too little memory ends with one sentence on standard error and exit code 2, a written
    model that is not the one in memory with one sentence and exit code 1, Ctrl-C with 130 and SIGTERM with 143. Of
    several ranks that end so, one says it.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0" if sys.stderr.isatty() else "1")
    if _is_rank():
        # Each rank would warn of what the Trainer sets for models with experts.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    before = signal.signal(signal.SIGTERM, _end)
    try:
        app()
    except InputError as error:
        _tell(str(error))
        sys.exit(2)
    except VerificationError as error:
        _tell(f"{error}; the output was not written")
        sys.exit(1)
    except LostRankError:
        _tell("another rank has ended; the same command with --resume goes on")
        sys.exit(1)
    except SystemExit as ended:
        if ended.code in (INTERRUPTED, TERMINATED):
            _tell("interrupted; the same command with --resume goes on" if _is_resumable() else "interrupted")
        raise
    except (OSError, RuntimeError, MemoryError, SafetensorError) as error:
        from depthcut.faults import resource_error

        lacking = resource_error(error)
        if lacking is None:
            raise
        _tell(str(lacking))
        sys.exit(2)
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(*_: object) -> None:
    """Ends on SIGTERM as on Ctrl-C: what was found stays."""
    raise SystemExit(TERMINATED)


def _is_resumable() -> bool:
    """Whether the given command takes --resume."""
    command: Any = typer.main.get_command(app)
    for word in sys.argv[1:]:
        command = getattr(command, "commands", {}).get(word, command)
    return any(parameter.name == "resume" for parameter in command.params)


def _tell(sentence: str) -> None:
    """Prints what ends the process, unless another rank has told."""
    if _is_rank():
        from depthcut.distributed import tells

        if not tells():
            return
    print(f"depthcut: {sentence}", file=sys.stderr)


def _is_rank() -> bool:
    """Whether this is one of several processes that torchrun has started."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def _require_alone(what: str) -> None:
    if _is_rank():
        raise InputError(f"{what} is not divided among ranks; run it without torchrun (prune is)")


if __name__ == "__main__":
    main()
