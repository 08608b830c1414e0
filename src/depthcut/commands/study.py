"""The `study` commands: words to options to the studies, and where their tables and figures lie."""

from __future__ import annotations

from typing import Annotated

import typer

from depthcut.commands.options import (
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
    Remove,
    RepairSamples,
    RepairText,
    Revision,
    Seed,
    Tasks,
    TrustRemoteCode,
    UnitOption,
    recipe_of,
)
from depthcut.commands.terminal import command_line, print_study
from depthcut.registry import split_names

Methods = Annotated[
    str,
    typer.Option(help="Methods by name (see depthcut ls), separated by commas; a metric's name ranks by it, one shot."),
]
Repairs = Annotated[
    list[str] | None,
    typer.Option("--repair", help="Repair to measure every model with; several times for several, none for none."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted study.")]

app = typer.Typer(
    help="Questions that take many removals: each answer is tables, figures and their data in one folder.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def sweep(
    context: typer.Context,
    model: Model,
    output_dir: Output,
    methods: Methods = "greedy,shortgpt,uidl",
    unit: UnitOption = None,
    remove: Remove = "50%",
    every: Annotated[int, typer.Option(help="Units between two measured points.")] = 1,
    repair: Repairs = None,
    repair_text: RepairText = None,
    repair_samples: RepairSamples = None,
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
    recipe = recipe_of(context, without=("repair",))
    from depthcut.studies import sweep as study

    found = study.sweep(
        recipe,
        output_dir,
        methods=split_names(methods),
        every=every,
        repairs=repair or ["none"],
        overwrite=overwrite,
        resume=resume,
        command=command_line(),
    )
    print_study(found, output_dir)


@app.command()
def compare(
    context: typer.Context,
    model: Model,
    output_dir: Output,
    methods: Methods = "greedy,sleb,shortgpt,uidl",
    ratios: Annotated[str, typer.Option(help="Shares of the parameters to remove, separated by commas.")] = "10%,25%",
    repair: Repairs = None,
    repair_text: RepairText = None,
    repair_samples: RepairSamples = None,
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
    recipe = recipe_of(context, without=("repair",))
    from depthcut.studies import compare as study

    found = study.compare(
        recipe,
        output_dir,
        methods=split_names(methods),
        ratios=split_names(ratios),
        repairs=repair or ["none"],
        overwrite=overwrite,
        resume=resume,
        command=command_line(),
    )
    print_study(found, output_dir)


@app.command()
def tradeoff(
    context: typer.Context,
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
    recipe = recipe_of(context, without=("remove",), calibration_samples=questions, calibration_length=question_length)
    from depthcut.studies import tradeoff as study

    found = study.tradeoff(
        recipe,
        output_dir,
        tasks=study.parse_tasks(task),
        counts=split_names(remove),
        overwrite=overwrite,
        resume=resume,
        command=command_line(),
    )
    print_study(found, output_dir)


@app.command()
def inspect(
    context: typer.Context,
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
    recipe = recipe_of(context)
    from depthcut.studies import inspection as study

    found = study.inspect(recipe, output_dir, overwrite=overwrite, resume=resume, command=command_line())
    print_study(found, output_dir)
