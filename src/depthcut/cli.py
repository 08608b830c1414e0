"""The command line: words to options to the pipeline, and its results to a terminal; nothing else is decided here."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from depthcut.eval_command import evaluate
from depthcut.export import VerificationError
from depthcut.options import (
    BatchSize,
    BudgetOption,
    Calibration,
    CalibrationLength,
    CalibrationSamples,
    Compare,
    Device,
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
    Speed,
    Swap,
    Tasks,
    TrustRemoteCode,
    UnitOption,
    comma_separated,
)
from depthcut.study_command import app as study_app
from depthcut.terminal import print_measurements
from depthcut.types import GenerationSample, InputError, Measurement, Plan, Repair, ScoreTable

if TYPE_CHECKING:
    from depthcut.pipeline import Preview
    from depthcut.recipe import Recipe

INTERRUPTED = 130
"""The exit code that typer makes of Ctrl-C."""

app = typer.Typer(
    name="depthcut",
    help="Makes large language models shallower: finds the blocks and sublayers that can go, removes them for real, "
    "measures what is left.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("eval")(evaluate)
app.add_typer(study_app, name="study")


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
    memory_budget: MemoryBudget = "1GiB",
    speed: Speed = True,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    push_to_hub: PushToHub = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; write nothing.")] = False,
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
    _run(recipe, output_dir, overwrite=overwrite, resume=resume, dry_run=dry_run, push_to_hub=push_to_hub)


@app.command()
def run(
    recipe_file: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="Options of prune as YAML.")],
    output_dir: Output,
    overwrite: Overwrite = False,
    push_to_hub: PushToHub = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; write nothing.")] = False,
) -> None:
    """Run prune from a recipe file."""
    from depthcut.recipe import Recipe

    _run(
        Recipe.from_yaml(recipe_file),
        output_dir,
        overwrite=overwrite,
        resume=resume,
        dry_run=dry_run,
        push_to_hub=push_to_hub,
    )


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
    """List packaged models, texts, methods, metrics and model families."""
    from rich.console import Console
    from rich.table import Table

    from depthcut.calibration import BUILT_IN
    from depthcut.export import EXPORTS
    from depthcut.importance.static import BLOCK_INFLUENCE, METRICS
    from depthcut.model.architectures import FAMILIES
    from depthcut.model.files import PACKAGED_MODELS
    from depthcut.objectives import OBJECTIVES
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
    file: Annotated[Path, typer.Argument(help="A recipe (.yaml), plan.json, scores.json or results.json.")],
) -> None:
    """Check a recipe or an artefact without running anything."""
    from depthcut.recipe import Recipe
    from depthcut.types import read_generation, read_measurements, read_repairs

    if file.suffix in (".yaml", ".yml"):
        Recipe.from_yaml(file).check()
    elif file.name == "scores.json":
        ScoreTable.from_file(file)
    elif file.name == "results.json":
        read_measurements(file)
    elif file.name == "recovery.json":
        read_repairs(file)
    elif file.name == "generation.json":
        read_generation(file)
    else:
        Plan.from_file(file)
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


def _run(
    recipe: Recipe, output: Path, *, overwrite: bool, resume: bool, dry_run: bool, push_to_hub: str | None
) -> None:
    from depthcut import pipeline

    _check_push(push_to_hub)
    if dry_run:
        from depthcut.workspace import check_output

        check_output(output, overwrite=overwrite, resume=resume)
        _print_preview(pipeline.preview(recipe), recipe)
        return
    result = pipeline.prune(recipe, output, overwrite=overwrite, resume=resume, command=_command_line())
    _print_result(result, output)
    for form in recipe.export:
        if form not in dict(result.not_written):
            print(f"{form} written to {output / form}, verified")
    for form, reason in result.not_written:
        print(f"depthcut: {form} was not written: {reason}", file=sys.stderr)
    _push(output, push_to_hub)
    if result.not_written:
        raise typer.Exit(1)


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


def _print_preview(found: Preview, recipe: Recipe) -> None:
    model, problem, plan = found.source.provenance, found.problem, found.plan
    print(f"model       {model.source}: {model.model_type}, {model.num_blocks} blocks, {model.dtype}")
    sizes = problem.sizes
    if plan is None:
        print(f"removes     what a search finds: {problem.budget} by {problem.unit} units, method {recipe.method}")
        print(f"parameters  {sizes.parameters:,} before")
        print(f"KV cache    {sizes.kv_bytes_per_token:,} bytes a token before")
    else:
        print(f"removes     {' '.join(_short(plan)) or 'nothing'}")
        print(f"parameters  {sizes.parameters:,} -> {sizes.parameters_without(plan.removed):,}")
        kv_bytes = sizes.kv_bytes_without(plan.removed)
        print(f"KV cache    {sizes.kv_bytes_per_token:,} -> {kv_bytes:,} bytes a token")
    passes = found.unit_evaluations / (len(problem.units) * recipe.calibration_samples)
    print(
        f"finding it  about {passes:.1f} forward passes over {recipe.calibration_samples} x {recipe.calibration_length}"
        f" tokens ({found.unit_evaluations:,} unit evaluations)"
    )
    passes = 2 + len(recipe.compare)
    print(f"measuring   {passes} forward passes over {recipe.evaluation_samples} x {recipe.evaluation_length} tokens")
    print("nothing was written (dry run)")


def _short(plan: Plan) -> list[str]:
    """The removed units in order of removal; a whole block by its number."""
    names = []
    for step in plan.steps:
        if step.applied:
            layers = sorted({unit.layer for unit in step.remove})
            whole = plan.unit == "block"
            names += [str(layer) for layer in layers] if whole else ["+".join(str(unit) for unit in step.remove)]
    return names


def _print_result(result: Any, output: Path) -> None:
    plan: Plan = result.plan
    print(f"\nremoved ({plan.unit}, {plan.method}): {' '.join(_short(plan)) or 'nothing'}\n")
    print_measurements(result.measurements)
    for repair in result.repairs:
        outcome = "" if repair.kept else "; it did not help and was undone"
        print(
            f"{repair.method}: {repair.objective} {repair.before:.3f} -> {repair.after:.3f} on held-out text{outcome}"
        )
    print("\nreloaded in a fresh process: logits equal bit for bit, greedy tokens equal with and without cache")
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

    A bad input ends with one sentence on standard error and exit code 2, a written model that is not the one in
    memory with one sentence and exit code 1.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0" if sys.stderr.isatty() else "1")
    try:
        app()
    except InputError as error:
        print(f"depthcut: {error}", file=sys.stderr)
        sys.exit(2)
    except VerificationError as error:
        print(f"depthcut: {error}; the output was not written", file=sys.stderr)
        sys.exit(1)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            print("depthcut: interrupted; the same command with --resume goes on", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
