"""The options of a run: each one's name, type, default, bounds, help and heading, written once.

The command line, recipe files, Python, the JSON schema and the reference are made from these fields. This file imports
nothing slow; the work is in `recipe.py`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator
from pydantic.fields import FieldInfo

from depthcut.types import Record, UnitChoice

AUTO = "auto"

OF_APPLY = {"repair": "none"}
"""Defaults of commands that are given what to remove, and do not search."""

Effort = Literal["quick", "normal", "high", "max"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]

MODEL, REMOVAL, CALIBRATION, REPAIR, EVALUATION, TASKS, FORMS, RUN = PANELS = (
    "Model",
    "Removal",
    "Calibration text",
    "Repair",
    "Measuring",
    "Tasks",
    "Output",
    "Run",
)
"""The headings under which options are listed, in that order."""


def option(panel: str, default: Any, help: str, *flags: str, separate: bool = False, **bounds: Any) -> Any:
    """A field that a user gives.

    Args:
        panel: heading in the command line's help.
        help: what it says there, one or two short sentences.
        flags: what it is called on the command line, where that is not the field's name.
        separate: whether the items of a list are given one by one, not in one word with commas.
        bounds: what pydantic checks, for example `ge=1`.
    """
    place: dict[str, Any] = {"panel": panel}
    if flags:
        place["flags"] = list(flags)
    if separate:
        place["separate"] = True
    return Field(default, description=help, json_schema_extra=place, **bounds)


def option_of(field: FieldInfo) -> dict[str, Any] | None:
    """The arguments of `option` that pydantic does not keep; None for a field that is no option."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else None


class Options(Record):
    """The options of `depthcut prune`."""

    model: str = option(MODEL, ..., "Hub id, directory, .gguf file, or a packaged model (see depthcut ls).")
    revision: str | None = option(MODEL, None, "Commit, tag or branch of a hub model.")
    adapter: str | None = option(MODEL, None, "Folder of a peft adapter to merge into the model first.")
    trust_remote_code: bool = option(MODEL, False, "Run code that comes with the model.")
    dtype: Precision = option(
        MODEL,
        "auto",
        "Precision of the computation; auto is the stored one, or float32 if the CPU is much faster at it.",
    )
    save_dtype: Precision = option(
        MODEL, "auto", "Precision of the written weights; auto is that of the source, bfloat16 for a GGUF."
    )
    device: str = option(MODEL, "auto", "auto (the first accelerator where there is one), cpu, cuda, cuda:1, ...")
    method: str = option(
        REMOVAL,
        "greedy",
        "How units are chosen, with settings: greedy,strategy=exhaustive or evopress,generations=40 (see depthcut ls).",
    )
    metric: str | None = option(
        REMOVAL, None, "What --method one-shot ranks by, a metric or an objective, with settings: taylor,power=2."
    )
    objective: str | None = option(
        REMOVAL,
        None,
        "Objective that the search minimises: kl, js, loss, ... Short for the setting objective.",
    )
    swap: bool | None = option(
        REMOVAL, None, "Improve the set that greedy found by exchanging units. Short for its setting swap."
    )
    max_forwards: int | None = option(
        REMOVAL,
        None,
        "Most passes over the calibration text for shapley. Short for its setting max_forwards.",
        ge=1,
    )
    unit: UnitChoice | None = option(REMOVAL, None, "What one step removes; the default depends on the method.")
    remove: str | None = option(REMOVAL, None, "Share (25%) or number of units to remove; or give --budget.")
    budget: str | None = option(
        REMOVAL, None, "What may stay: parameters=0.8, kv=0.7, memory=22GiB,context=8192, ... (join several with +)."
    )
    max_increase: str | None = option(
        REMOVAL, None, "Remove as much as possible up to this increase on held-out calibration text: kl=0.1, loss=0.05."
    )
    protect: tuple[str, ...] = option(REMOVAL, (), "Blocks or sublayers that stay: 0,1,29 or 17.attn.")
    calibration: str = option(
        CALIBRATION,
        AUTO,
        "SOURCE of the text that the search uses; auto is text that the model writes, or stdlib for a method of one "
        "pass and if weights stay in their files.",
    )
    calibration_samples: int = option(CALIBRATION, 16, "Sequences of calibration text.", ge=1)
    calibration_length: int = option(CALIBRATION, 512, "Tokens per sequence.", ge=2)
    evaluation: str = option(EVALUATION, "stdlib", "SOURCE of the text to measure on; never the same documents.")
    evaluation_samples: int = option(EVALUATION, 16, "Sequences of evaluation text.", ge=1)
    evaluation_length: int = option(EVALUATION, 512, "Tokens per sequence.", ge=2)
    tasks: tuple[str, ...] = option(
        TASKS, (), "Tasks of lm-evaluation-harness to evaluate both models on: arc_easy,piqa.", "--eval", "--tasks"
    )
    num_fewshot: int | None = option(
        TASKS, None, "Examples before each question; by default the task's own number.", ge=0
    )
    limit: str | None = option(TASKS, None, "Documents of each task: a number (40) or a share (0.1).")
    include_path: str | None = option(
        TASKS, None, "Folder with your own tasks as YAML; Python functions that they name are run."
    )
    generation: bool = option(
        TASKS, False, "Measure what both models generate from fixed prompts: repetition, sums, copy, format."
    )
    compare: tuple[str, ...] = option(
        EVALUATION,
        (),
        "Also measure what these one-pass methods would remove at equal parameters: shortgpt,uidl.",
    )
    export: tuple[str, ...] = option(
        FORMS, (), "Further formats to write into OUT/FORMAT: zeroed or gguf,tensor_type=q8_0 (see depthcut ls)."
    )
    repair: str | None = option(
        REPAIR,
        None,
        "Repairs after the removal, with settings: refit, lora,rank=8, bias+refit or none; by default refit after a "
        "search that looks at the output, else none.",
    )
    repair_text: str | None = option(
        REPAIR, None, "SOURCE of the text to fit repairs to; by default that of the calibration text."
    )
    repair_samples: int | None = option(
        REPAIR,
        None,
        "Sequences of that text, one in sixteen of which is held out; by default four times the calibration samples.",
        ge=4,
    )
    effort: Effort | None = option(
        RUN,
        None,
        "Sets the samples, lengths and repairs that are not given; by default normal.",
    )
    batch_size: int = option(
        RUN,
        4,
        "Sequences run together; the plans of evopress and shapley depend on it, because they draw batches at random.",
        ge=1,
    )
    memory_budget: str | None = option(
        RUN, None, "Memory limit of the whole run: 8GiB; weights that do not fit are read from their files when needed."
    )
    device_memory: str | None = option(
        RUN, None, "Memory limit on the accelerator: 20GiB, by default what is free; other weights come in as they run."
    )
    speed: bool = option(EVALUATION, True, "Time both models.")
    seed: int = option(RUN, 0, "Seed of everything random.", ge=0, lt=1 << 32)

    @field_validator("remove", "limit", mode="before")
    @classmethod
    def _amount_as_text(cls, value: object) -> object:
        """A YAML file may give a count or a share as a number."""
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    @field_validator("protect", mode="before")
    @classmethod
    def _protect_as_text(cls, value: object) -> object:
        return tuple(str(item) for item in value) if isinstance(value, list | tuple) else value
