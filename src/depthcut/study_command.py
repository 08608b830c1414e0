"""The `study` commands: words to options to the studies, and where their tables and figures lie."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from depthcut.options import (
    BatchSize,
    Calibration,
    CalibrationLength,
    CalibrationSamples,
    Device,
    Dtype,
    Evaluation,
    EvaluationLength,
    EvaluationSamples,
    IncludePath,
    Limit,
    MemoryBudget,
    Method,
    Model,
    NumFewshot,
    Output,
    Overwrite,
    RecoverSamples,
    RecoverText,
    Remove,
    Revision,
    Seed,
    Tasks,
    TrustRemoteCode,
    UnitOption,
    comma_separated,
)

if TYPE_CHECKING:
    from depthcut.recipe import Recipe
    from depthcut.studies.study import Study

Methods = Annotated[
    str,
    typer.Option(help="Methods by name (see depthcut ls), separated by commas; a metric's name ranks by it, one shot."),
]
Recovers = Annotated[
    list[str] | None,
    typer.Option("--recover", help="Repair to measure every model with; several times for several, none for none."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted study.")]

app = typer.Typer(
    help="Questions that take many removals: each answer is tables, figures and their data in one folder.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def sweep(
    model: Model,
    output_dir: Output,
    methods: Methods = "greedy,shortgpt,uidl",
    unit: UnitOption = None,
    remove: Remove = "50%",
    every: Annotated[int, typer.Option(help="Units between two measured points.")] = 1,
    recover: Recovers = None,
    recover_text: RecoverText = None,
    recover_samples: RecoverSamples = None,
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
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch_size: BatchSize = 4,
    memory_budget: MemoryBudget = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    resume: Resume = False,
) -> None:
    """Quality after each removal of one path a method, repaired or not, with the point where it collapses."""
    recipe = _recipe(
        model=model,
        unit=unit,
        remove=remove,
        recover_text=recover_text,
        recover_samples=recover_samples,
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
        revision=revision,
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        device=device,
        batch_size=batch_size,
        memory_budget=memory_budget,
        seed=seed,
    )
    from depthcut.studies import sweep as study

    found = study.sweep(
        recipe,
        output_dir,
        methods=comma_separated(methods),
        every=every,
        recovers=recover or ["none"],
        overwrite=overwrite,
        resume=resume,
        command=_command_line(),
    )
    print_study(found, output_dir)


@app.command()
def compare(
    model: Model,
    output_dir: Output,
    methods: Methods = "greedy,sleb,shortgpt,uidl",
    ratios: Annotated[str, typer.Option(help="Shares of the parameters to remove, separated by commas.")] = "10%,25%",
    recover: Recovers = None,
    recover_text: RecoverText = None,
    recover_samples: RecoverSamples = None,
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
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch_size: BatchSize = 4,
    memory_budget: MemoryBudget = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    resume: Resume = False,
) -> None:
    """Methods against each other at equal parameters, on the same calibration text."""
    recipe = _recipe(
        model=model,
        recover_text=recover_text,
        recover_samples=recover_samples,
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
        revision=revision,
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        device=device,
        batch_size=batch_size,
        memory_budget=memory_budget,
        seed=seed,
    )
    from depthcut.studies import compare as study

    found = study.compare(
        recipe,
        output_dir,
        methods=comma_separated(methods),
        ratios=comma_separated(ratios),
        recovers=recover or ["none"],
        overwrite=overwrite,
        resume=resume,
        command=_command_line(),
    )
    print_study(found, output_dir)


@app.command()
def tradeoff(
    model: Model,
    output_dir: Output,
    task: Annotated[
        list[str],
        typer.Option(
            "--task",
            metavar="NAME=FILE",
            help="A task: JSON Lines of question, options and answer. Given twice or more.",
        ),
    ],
    unit: UnitOption = "block",
    remove: Annotated[str, typer.Option(help="Shares or numbers of units to remove, separated by commas.")] = "25%",
    questions: Annotated[int, typer.Option(help="Questions of each task that decide; as many others measure.")] = 64,
    question_length: Annotated[int, typer.Option(help="Most tokens of a question with an answer.")] = 512,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch_size: BatchSize = 4,
    memory_budget: MemoryBudget = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    resume: Resume = False,
) -> None:
    """What one task can spare against what another can, and what each loses by the other's removals."""
    recipe = _recipe(
        model=model,
        unit=unit,
        calibration_samples=questions,
        calibration_length=question_length,
        revision=revision,
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        device=device,
        batch_size=batch_size,
        memory_budget=memory_budget,
        seed=seed,
    )
    from depthcut.studies import tradeoff as study

    found = study.tradeoff(
        recipe,
        output_dir,
        tasks=study.parse_tasks(task),
        counts=comma_separated(remove),
        overwrite=overwrite,
        resume=resume,
        command=_command_line(),
    )
    print_study(found, output_dir)


@app.command()
def inspect(
    model: Model,
    output_dir: Output,
    method: Method = "greedy",
    unit: UnitOption = "sublayer",
    remove: Remove = "25%",
    calibration: Calibration = "stdlib",
    calibration_samples: CalibrationSamples = 16,
    calibration_length: CalibrationLength = 512,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch_size: BatchSize = 4,
    memory_budget: MemoryBudget = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    resume: Resume = False,
) -> None:
    """Block Influence against the loss, angular distances, and which kind of unit a method takes where and when."""
    recipe = _recipe(
        model=model,
        method=method,
        unit=unit,
        remove=remove,
        calibration=calibration,
        calibration_samples=calibration_samples,
        calibration_length=calibration_length,
        revision=revision,
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        device=device,
        batch_size=batch_size,
        memory_budget=memory_budget,
        seed=seed,
    )
    from depthcut.studies import inspection as study

    found = study.inspect(recipe, output_dir, overwrite=overwrite, resume=resume, command=_command_line())
    print_study(found, output_dir)


def _recipe(**options: object) -> Recipe:
    from depthcut.recipe import Recipe

    return Recipe.build(**options)


def _command_line() -> str:
    return shlex.join(["depthcut", *sys.argv[1:]])


def print_study(found: Study, output: Path) -> None:
    """What was found in sentences, and where the rest is."""
    print("\n".join(found.findings))
    print(f"\ntables, figures and data written to {output}; study.md shows them")
