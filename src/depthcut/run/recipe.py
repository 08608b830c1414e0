"""One run as one file: everything `depthcut prune` can be told, validated before any weight loads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator

from depthcut.ablation.objectives import TASK_OBJECTIVES
from depthcut.calibration import Purpose, check_questions, check_source, parse_source
from depthcut.evaluation.harness import check_cache, default_cache
from depthcut.evaluation.questions import Questions
from depthcut.evaluation.suite import Suite, check_harness, load_suite, parse_limit
from depthcut.export import EXPORTS
from depthcut.importance import METRICS
from depthcut.registry import Registry, split_settings
from depthcut.repair import REPAIRS, RepairMethod, parse_repairs
from depthcut.search.problem import SEARCHES, Budget, Search, parse_bytes
from depthcut.types import InputError, Record, UnitChoice, first_problem, require_regular

REGISTRIES: tuple[Registry[Any], ...] = (SEARCHES, METRICS, REPAIRS, EXPORTS)
"""All that is chosen by name, with settings."""

SHORT_FORMS = {
    "metric": "metric",
    "objective": "objective",
    "search": "strategy",
    "swap": "swap",
    "max_forwards": "max_forwards",
}
"""Options that are a setting of the method under a name of their own."""

PASSES_AT_MOST = 8
"""How often a training may go through its text."""


def read_options(path: Path) -> dict[str, object]:
    """The lines of a recipe file.

    Raises:
        InputError: the file is missing, or is no YAML mapping.
    """
    require_regular(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the recipe {path}: {error.strerror}") from error
    except RecursionError as error:
        raise InputError(f"the recipe {path} is nested too deeply; write lines such as `model: smollm2`") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"the recipe {path} is no YAML text: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(f"the recipe {path} is no list of options; write lines such as `model: smollm2`")
    return content


class Recipe(Record):
    """A run of `depthcut prune`; the command line's options under the same names.

    Attributes:
        model: hub id, directory, `.gguf` file or alias.
        revision: commit, tag or branch of a hub model.
        trust_remote_code: whether code that comes with the model runs.
        dtype: precision of all passes; `auto` is the stored one, or float32 on a CPU that is much faster at it.
        save_dtype: precision of the written weights; `auto` is the stored one (bfloat16 for a GGUF).
        device: a torch device, or `auto`: the first GPU where there is one.
        remove: share (`25%`) or count of units to remove; either this or `budget`.
        method: how units are chosen, `greedy` or with settings `greedy,strategy=exhaustive,swap=false`; `depthcut ls
            NAME` lists them. The next five are short forms of such settings.
        metric: static metric or objective of the method `one-shot`.
        objective: what a search minimises, one of `OBJECTIVES` or `TASK_OBJECTIVES`.
        search: the setting `strategy`: whether a greedy search looks at few candidates a round or at all.
        swap: whether the found set is refined by exchanges.
        max_forwards: passes over the calibration text that the method `shapley` may take.
        unit: what one step removes; the method's own unit where left out.
        budget: largest fraction that may stay, `parameters=0.8` or `kv=0.7`, or what the weights may take, `bytes=8GB`.
        max_increase: the most that may be lost on held-out calibration text, `kl=0.1`, instead of an amount.
        protect: units that stay: blocks (`0`) or sublayers (`17.attn`).
        calibration: SOURCE of the text that decides.
        calibration_samples: its sequences.
        calibration_length: tokens of each.
        evaluation: SOURCE of the text that measures; never the same documents.
        evaluation_samples: its sequences.
        evaluation_length: tokens of each.
        repair: repairs after the removal, `refit` or `lora,rank=8+refit`; where left out `refit` after a search that
            looks at the output, else `none`.
        repair_text: SOURCE of the text that repairs are fitted to; the calibration text's where left out.
        repair_samples: its sequences, of the calibration's length; four times the calibration's where left out. One in
            sixteen judges the repair.
        tasks: tasks of lm-evaluation-harness that both models are asked, by its names.
        num_fewshot: examples before each question; the task's own number where left out.
        limit: documents asked of each task, a count (`40`) or a share (`0.1`).
        include_path: folder of tasks of one's own as YAML; Python functions that they name run.
        generation: whether both models write after the prompts of the generation probe.
        compare: methods, with settings, whose choice at equal parameters is measured beside the pruned model, and not
            written.
        export: further forms to write, `zeroed` or `gguf,tensor_type=q8_0`, each into a folder of its name beside the
            Hugging Face model.
        batch_size: sequences run together. `evopress` and `shapley` draw batches at random, so that their plans depend
            on it; of all else it changes speed, memory and rounding alone.
        memory_budget: bytes for the whole run, `8GiB` or `800MiB`; weights that do not fit are read from their files as
            layers run. Where left out, as much as is free, and 1 GiB of it for what a search keeps.
        speed: whether both models are timed.
        seed: of everything random.
    """

    model: str
    revision: str | None = None
    trust_remote_code: bool = False
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    method: str = "greedy"
    metric: str | None = None
    objective: str | None = None
    search: Literal["lazy", "exhaustive"] | None = None
    swap: bool | None = None
    max_forwards: int | None = Field(None, ge=1)
    unit: UnitChoice | None = None
    remove: str | None = None
    budget: str | None = None
    max_increase: str | None = None
    protect: tuple[str, ...] = ()
    calibration: str = "stdlib"
    calibration_samples: int = Field(16, ge=1)
    calibration_length: int = Field(512, ge=2)
    evaluation: str = "stdlib"
    evaluation_samples: int = Field(16, ge=1)
    evaluation_length: int = Field(512, ge=2)
    tasks: tuple[str, ...] = ()
    num_fewshot: int | None = Field(None, ge=0)
    limit: str | None = None
    include_path: str | None = None
    generation: bool = False
    compare: tuple[str, ...] = ()
    export: tuple[str, ...] = ()
    repair: str | None = None
    repair_text: str | None = None
    repair_samples: int | None = Field(None, ge=4)
    batch_size: int = Field(4, ge=1)
    memory_budget: str | None = None
    speed: bool = True
    seed: int = Field(0, ge=0, lt=1 << 32)

    @field_validator("remove", "limit", mode="before")
    @classmethod
    def _amount_as_text(cls, value: object) -> object:
        """A YAML file may give a count or a share as a number."""
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    @field_validator("protect", mode="before")
    @classmethod
    def _protect_as_text(cls, value: object) -> object:
        return tuple(str(item) for item in value) if isinstance(value, list | tuple) else value

    @classmethod
    def build(cls, **options: object) -> Self:
        """A recipe from options, with the first problem in one sentence.

        Raises:
            InputError: an option is unknown or out of range.
        """
        try:
            return cls(**options)  # type: ignore[arg-type]
        except ValidationError as error:
            raise InputError(f"the recipe is not valid: {first_problem(error)}") from error

    def to_yaml(self) -> str:
        """The recipe file: what differs from the defaults."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_defaults=True), sort_keys=False)

    @property
    def parsed_budget(self) -> Budget:
        """How much goes. Raises InputError where not exactly one option says it."""
        return Budget.parse(self.remove, self.budget, self.max_increase)

    @property
    def method_settings(self) -> dict[str, object]:
        """What is set of the method, in its own words or by a short form.

        Raises:
            InputError: something is set both ways.
        """
        _, given = split_settings(self.method)
        settings: dict[str, object] = dict(given)
        for name, setting in SHORT_FORMS.items():
            if getattr(self, name) is None:
                continue
            if setting in given:
                raise InputError(f"{setting} of the method is given twice, also as {name}; leave one out")
            settings[setting] = getattr(self, name)
        return settings

    def build_search(self) -> Search:
        """The search with its hyper-parameters.

        Raises:
            InputError: the method is unknown, or does not take a given hyper-parameter.
        """
        name, search = SEARCHES.parse(self.method)
        known, settings = SEARCHES.find(name).settings(), self.method_settings
        short = {setting: option for option, setting in SHORT_FORMS.items() if getattr(self, option) is not None}
        for setting, option in short.items():
            if setting not in known:
                word = option.replace("_", "-")
                raise InputError(
                    f"method {name!r} takes no {word}; leave --{word} out, or choose another method "
                    "(greedy: objective, search, swap; one-shot: metric; shapley: objective, max-forwards)"
                )
        given = {setting: settings[setting] for setting in short}
        return dataclasses.replace(search, **given)  # type: ignore[type-var]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics that the method, and those that are compared with it, rank by."""
        searches = [self.build_search(), *(SEARCHES.parse(rival)[1] for rival in self.compare)]
        named = [search.objective for search in searches if search.needs == "scores" and search.objective]
        return tuple(dict.fromkeys(METRICS.canonical(name) for name in named if name in METRICS))

    @property
    def repairs(self) -> list[tuple[str, RepairMethod]]:
        """The repairs in order, by name.

        Raises:
            InputError: one is unknown, set wrongly, or at the wrong place.
        """
        if self.repair is not None:
            return parse_repairs(self.repair)
        return parse_repairs("refit" if self.build_search().needs == "objective" else "none")

    @property
    def repair_source(self) -> str:
        """SOURCE of the text that repairs are fitted to; questions and their answers are no text to fit to."""
        asks = self.build_search().objective in TASK_OBJECTIVES
        return self.repair_text or ("stdlib" if asks else self.calibration)

    @property
    def num_repair_samples(self) -> int:
        """Sequences that repairs have, those that judge them included."""
        return self.repair_samples or max(4, 4 * self.calibration_samples)

    @property
    def memory_bytes(self) -> int | None:
        """The memory budget in bytes, None where there is none.

        Raises:
            InputError: it is no amount.
        """
        return None if self.memory_budget is None else parse_bytes(self.memory_budget, "memory budget")

    def load_questions(self) -> Questions:
        """What both models are asked beside texts, the tasks' prompts built.

        Raises:
            InputError: a task is unknown or cannot be read, or its results cannot be kept.
        """
        suite: Suite | None = None
        if self.tasks:
            check_cache(default_cache())
            suite = load_suite(
                self.tasks, num_fewshot=self.num_fewshot, limit=self.limit, include_path=self.include_path
            )
        return Questions(suite, self.generation, seed=self.seed)

    def check(self, *, offline: bool = False) -> None:
        """All checks that need neither model nor tokenizer.

        Args:
            offline: whether data sets of the hub are taken to be as they are named.

        Raises:
            InputError: a method, metric, amount or source is wrong.
        """
        search = self.build_search()
        assert self.parsed_budget
        assert self.memory_bytes != 0
        for name, method in self.repairs:
            if method.num_sequences > PASSES_AT_MOST * self.num_repair_samples:
                raise InputError(
                    f"{name} would train on {method.num_sequences} sequences and its text has "
                    f"{self.num_repair_samples}, so it would learn them by heart; give --repair-samples "
                    f"{-(-method.num_sequences // PASSES_AT_MOST)} or more, or train less: {name},steps=..."
                )
        if self.repairs:
            _check_text(self.repair_source, "calibration", offline)
        if self.tasks:
            check_harness()
            parse_limit(self.limit)
        elif (self.num_fewshot, self.limit, self.include_path) != (None, None, None):
            raise InputError("num-fewshot, limit and include-path are about tasks; name some with --eval")
        for form in self.export:
            if split_settings(form)[0] == "hf":
                raise InputError("the Hugging Face directory is always written; leave hf out of --export")
        names = [EXPORTS.parse(form)[0] for form in self.export]
        if len(set(names)) < len(names):
            raise InputError(f"--export names one form twice ({', '.join(self.export)}); each has one folder")
        for rival in self.compare:
            if SEARCHES.parse(rival)[1].needs == "objective":
                raise InputError(f"cannot compare with {rival!r}, which needs a search; compare takes one-pass methods")
        if search.objective in TASK_OBJECTIVES:
            check_questions(parse_source(self.calibration))
        else:
            _check_text(self.calibration, "calibration", offline)
        _check_text(self.evaluation, "evaluation", offline)


def _check_text(text: str, purpose: Purpose, offline: bool) -> None:
    """Raises InputError where a SOURCE cannot be read; offline what is on the hub is not looked for."""
    source = parse_source(text)
    if not (offline and any(part.kind == "hub" for part in source.parts)):
        check_source(source, purpose)
