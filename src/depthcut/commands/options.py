"""Options of the command line that several commands share, and the recipe that they make."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from depthcut.registry import split_names

if TYPE_CHECKING:
    from depthcut.run.recipe import Recipe

LISTS = {"protect", "tasks", "compare", "export"}
"""Options that take several names, separated by commas."""


def _checked(model: str) -> str:
    """The model's name, once its configuration is known not to be in vain; before torch is imported."""
    from depthcut.model.checkpoint import check_model

    check_model(model)
    return model


Model = Annotated[
    str,
    typer.Argument(help="Hub id, directory, .gguf file, or a packaged model (see depthcut ls).", callback=_checked),
]
Output = Annotated[Path, typer.Option("--output-dir", "-o", help="Directory to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result in the output directory.")]
Revision = Annotated[str | None, typer.Option(help="Commit, tag or branch of a hub model.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
Dtype = Annotated[str, typer.Option(help="What is computed in: auto, float32, bfloat16 or float16.")]
SaveDtype = Annotated[str, typer.Option(help="What is written; by default what the source is stored in.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Method = Annotated[str, typer.Option(help="How units are chosen: greedy or evopress,generations=40 (see depthcut ls).")]
Metric = Annotated[str | None, typer.Option(help="Metric or objective, for --method one-shot: taylor,power=2.")]
ObjectiveOption = Annotated[str | None, typer.Option("--objective", help="What a search minimises: kl, js, loss, ...")]
SearchOption = Annotated[str | None, typer.Option("--search", help="lazy or exhaustive.")]
MaxForwards = Annotated[
    int | None, typer.Option(help="Forward passes over the calibration text that --method shapley may take.")
]
Swap = Annotated[bool | None, typer.Option("--swap/--no-swap", help="Refine the found set by exchanges.")]
UnitOption = Annotated[
    str | None, typer.Option("--unit", help="block, pair, attn, ffn or sublayer; by default the method's own.")
]
MemoryBudget = Annotated[
    str | None, typer.Option(help="Memory for the whole run, 8GiB; weights that do not fit are read when needed.")
]
Remove = Annotated[str | None, typer.Option(help="Share (25%) or number of units to remove.")]
BudgetOption = Annotated[
    str | None, typer.Option("--budget", help="What may stay: parameters=0.8, kv=0.7, latency=0.8 or bytes=8GB.")
]
MaxIncrease = Annotated[str | None, typer.Option(help="Remove all that costs at most this: kl=0.1, loss=0.05.")]
Protect = Annotated[str, typer.Option(help="Blocks or sublayers that stay: 0,1,29 or 17.attn.")]
Calibration = Annotated[str, typer.Option(help="SOURCE of the text that decides.")]
CalibrationSamples = Annotated[int, typer.Option(help="Sequences of calibration text.")]
CalibrationLength = Annotated[int, typer.Option(help="Tokens a sequence.")]
Evaluation = Annotated[str, typer.Option(help="SOURCE of the text that measures.")]
EvaluationSamples = Annotated[int, typer.Option(help="Sequences of evaluation text.")]
EvaluationLength = Annotated[int, typer.Option(help="Tokens a sequence.")]
Forms = Annotated[
    str, typer.Option("--export", help="Further forms to write into OUT/FORM: gguf,tensor_type=q8_0,zeroed.")
]
Compare = Annotated[str, typer.Option(help="One-pass methods to measure beside: shortgpt,uidl.")]
Repair = Annotated[
    str | None,
    typer.Option(help="Repairs after the removal: refit (after a search the default), lora,rank=8, bias+refit, none."),
]
RepairText = Annotated[str | None, typer.Option(help="SOURCE of the text they are fitted to; the calibration's.")]
RepairSamples = Annotated[int | None, typer.Option(help="Its sequences; four times the calibration's.")]
ShardOption = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Evaluate one of N shares of the search and end; see depthcut merge."),
]
BatchSize = Annotated[int, typer.Option(help="Sequences run together.")]
Speed = Annotated[bool, typer.Option("--speed/--no-speed", help="Time both models.")]
PushToHub = Annotated[
    str | None,
    typer.Option(metavar="USER/NAME", help="Push OUT to this repository of the Hugging Face hub, private where new."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the plan or its cost, and what the run takes; write nothing.")
]
DeviceProfileOption = Annotated[
    str | None,
    typer.Option("--device-profile", help="Of --dry-run: hours on here (measured), a100, h100, h200 or rtx4090."),
]
Devices = Annotated[int | None, typer.Option("--devices", help="Of --dry-run: that many of them.")]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
Tasks = Annotated[
    str, typer.Option("--eval", "--tasks", help="Ask both models tasks of lm-evaluation-harness: arc_easy,piqa.")
]
NumFewshot = Annotated[
    int | None, typer.Option(help="Examples before each question; by default the task's own number.")
]
Limit = Annotated[str | None, typer.Option(help="Documents asked of each task: a count (40) or a share (0.1).")]
IncludePath = Annotated[
    str | None, typer.Option(help="Folder of tasks of your own as YAML; Python functions that they name run.")
]
Generation = Annotated[
    bool, typer.Option("--generation", help="Let the models write after fixed prompts: repetition, sums, copy, format.")
]


def recipe_of(context: typer.Context, without: Collection[str] = (), **instead: object) -> Recipe:
    """The recipe that a command's options make.

    Args:
        without: options that mean something else in this command.
        instead: what stands for options under other names.

    Raises:
        InputError: an option is out of range.
    """
    from depthcut.run.recipe import Recipe

    given = {name: value for name, value in context.params.items() if name in Recipe.model_fields.keys() - set(without)}
    for name in LISTS & given.keys():
        given[name] = split_names(given[name])
    return Recipe.build(**given, **instead)
