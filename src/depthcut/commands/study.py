"""The `study` commands: each makes a recipe from its options, runs the study, and prints where its folder is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depthcut.commands.options import Given, Output, Overwrite, Resume, takes
from depthcut.commands.terminal import command_line, print_study
from depthcut.registry import split_names
from depthcut.run.options import CALIBRATION, EVALUATION, MODEL, REMOVAL, REPAIR, RUN, TASKS
from depthcut.studies.questions import Compare, Inspect, StudyQuestion, Sweep

app = typer.Typer(
    help="Questions about many removals; each study writes a folder with tables, figures and their data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
OF_NO_STUDY = ("save_dtype", "compare", "speed", "generation", "repair", "effort")
"""Options of a run that stand under the headings of a study but do not apply to it, or have another format there."""


@app.command()
@takes(
    *(MODEL, CALIBRATION, EVALUATION, REPAIR, TASKS, RUN, "unit", "remove"),
    without=OF_NO_STUDY,
    record=Sweep,
    defaults=Sweep.defaults,
)
def sweep(options: Given, output_dir: Output, overwrite: Overwrite = False, resume: Resume = False) -> None:
    """Measure quality after each removal, by method and repair, with the point where it collapses."""
    _study(Sweep, options, output_dir, overwrite=overwrite, resume=resume)


@app.command()
@takes(MODEL, CALIBRATION, EVALUATION, REPAIR, TASKS, RUN, without=OF_NO_STUDY, record=Compare)
def compare(options: Given, output_dir: Output, overwrite: Overwrite = False, resume: Resume = False) -> None:
    """Compare methods at equal parameters, with the same calibration text."""
    _study(Compare, options, output_dir, overwrite=overwrite, resume=resume)


@app.command()
@takes(MODEL, RUN, "unit", without=OF_NO_STUDY, defaults={"unit": "block"})
def tradeoff(
    options: Given,
    output_dir: Output,
    task: Annotated[
        list[str],
        typer.Option(
            "--task",
            metavar="NAME=FILE",
            help="A task: JSON Lines of question, options and answer. Give two or more.",
            rich_help_panel=CALIBRATION,
        ),
    ],
    remove: Annotated[
        str,
        typer.Option(help="Shares or numbers of units to remove, separated by commas.", rich_help_panel=REMOVAL),
    ] = "25%",
    questions: Annotated[
        int,
        typer.Option(
            help="Questions of each task to choose by; as many others to measure by.",
            rich_help_panel=CALIBRATION,
        ),
    ] = 64,
    question_length: Annotated[
        int, typer.Option(help="Most tokens of a question with an answer.", rich_help_panel=CALIBRATION)
    ] = 512,
    overwrite: Overwrite = False,
    resume: Resume = False,
) -> None:
    """Compare which units tasks need, and what each task loses by the removals chosen for another."""
    from depthcut.run.recipe import Recipe
    from depthcut.studies import tradeoff as study

    found = study.tradeoff(
        Recipe.build(**options, calibration_samples=questions, calibration_length=question_length),
        output_dir,
        tasks=study.parse_tasks(task),
        counts=split_names(remove),
        overwrite=overwrite,
        resume=resume,
        command=command_line(),
    )
    print_study(found, output_dir)


@app.command()
@takes(
    *(MODEL, CALIBRATION, RUN, "method", "unit", "remove"),
    without=OF_NO_STUDY,
    record=Inspect,
    defaults=Inspect.defaults,
)
def inspect(options: Given, output_dir: Output, overwrite: Overwrite = False, resume: Resume = False) -> None:
    """Block Influence against the loss, angular distances, and which kind of unit a method takes where and when."""
    _study(Inspect, options, output_dir, overwrite=overwrite, resume=resume)


def _study(question: type[StudyQuestion], options: Given, output: Path, *, overwrite: bool, resume: bool) -> None:
    from depthcut.studies.recipe import StudyRecipe

    study = StudyRecipe.build(options | {"study": question.model_fields["study"].default})
    print_study(study.run(output, overwrite=overwrite, resume=resume, command=command_line()), output)
