"""One run as one file: all options of `depthcut prune`, validated before any weight loads."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import yaml
from pydantic import ValidationError, model_validator

from depthcut.ablation.objectives import OBJECTIVES, asks_questions
from depthcut.calibration import BUILT_IN, Purpose, check_questions, check_source, parse_source, text_settings
from depthcut.evaluation.harness import check_cache, default_cache
from depthcut.evaluation.questions import Questions
from depthcut.evaluation.suite import Suite, check_harness, load_suite, parse_limit
from depthcut.export import EXPORTS
from depthcut.importance import METRICS
from depthcut.methods.budget import Budget, parse_bytes
from depthcut.methods.problem import SEARCHES, Search
from depthcut.registry import Registry, split_settings
from depthcut.repairs import REPAIRS, RepairMethod, parse_repairs
from depthcut.run.effort import with_effort
from depthcut.run.options import AUTO, Options
from depthcut.types import InputError, first_problem

REGISTRIES: dict[str, Registry[Any]] = {
    "method": SEARCHES,
    "metric": METRICS,
    "objective": OBJECTIVES,
    "repair": REPAIRS,
    "export": EXPORTS,
}
"""All that is chosen by name, with settings, by the option that names it."""

SHORT_FORMS = ("metric", "objective", "swap", "max_forwards")
"""Options that are the method's setting of that name."""

PASSES_AT_MOST = 8
"""How often a training may go through its text."""


class Recipe(Options):
    """A run of `depthcut prune`: the command line's options under the same names."""

    @model_validator(mode="before")
    @classmethod
    def _of_effort(cls, given: Any) -> Any:
        return with_effort(given) if isinstance(given, dict) else given

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

    @classmethod
    def schema_with_names(cls) -> dict[str, Any]:
        """The JSON schema, and under each option that takes a name what is registered, with its settings."""
        schema = cls.model_json_schema()
        for option, registry in REGISTRIES.items():
            schema["properties"][option]["names"] = {entry.name: entry.schema() for entry in registry}
        for option in ("calibration", "evaluation", "repair_text"):
            schema["properties"][option]["names"] = {
                part.name: {
                    "summary": part.summary,
                    "settings": {
                        name: {"type": "string", "default": each.default, "description": each.meaning}
                        for name, each in text_settings(part).items()
                    },
                }
                for part in BUILT_IN.values()
            }
        return schema

    def to_yaml(self) -> str:
        """The recipe file: what differs from the defaults."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_defaults=True), sort_keys=False)

    @property
    def parsed_budget(self) -> Budget:
        """How much to remove. Raises InputError unless exactly one option says it."""
        return Budget.parse(self.remove, self.budget, self.max_increase)

    @property
    def method_settings(self) -> dict[str, object]:
        """What is set of the method, in its own words or by a short form."""
        return split_settings(self.method)[1] | self._short

    @property
    def _short(self) -> dict[str, Any]:
        """The short forms that are given."""
        return {name: getattr(self, name) for name in SHORT_FORMS if getattr(self, name) is not None}

    def build_search(self) -> Search:
        """The search with its hyper-parameters.

        Raises:
            InputError: the method is unknown, or does not take a given hyper-parameter, or has one twice.
        """
        name, search = SEARCHES.parse(self.method)
        known, given = SEARCHES.find(name).settings(), split_settings(self.method)[1]
        for setting in self._short:
            if setting in given:
                raise InputError(f"{setting} of the method is given twice, also as an option; leave one out")
            if setting not in known:
                word = setting.replace("_", "-")
                raise InputError(
                    f"method {name!r} takes no {word}; leave --{word} out, or choose another method "
                    "(greedy: objective, swap; one-shot: metric; shapley: objective, max-forwards)"
                )
        return dataclasses.replace(search, **self._short)  # type: ignore[type-var]

    @property
    def asks_questions(self) -> bool:
        """Whether the search is on multiple-choice questions, and not on text."""
        search = self.build_search()
        return search.needs == "objective" and search.objective is not None and asks_questions(search.objective)

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
        return self.repair_text or (AUTO if self.asks_questions else self.calibration)

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

    @property
    def device_bytes(self) -> int | None:
        """The bytes that may be taken of an accelerator's memory, None where there is no limit but its own.

        Raises:
            InputError: it is no amount.
        """
        return None if self.device_memory is None else parse_bytes(self.device_memory, "device memory")

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
        self.build_search()
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
            raise InputError(f"--export names one format twice ({', '.join(self.export)}); each has one folder")
        for rival in self.compare:
            if SEARCHES.parse(rival)[1].needs == "objective":
                raise InputError(f"cannot compare with {rival!r}, which needs a search; compare takes one-pass methods")
        if self.asks_questions:
            check_questions(parse_source("stdlib" if self.calibration == AUTO else self.calibration))
        else:
            _check_text(self.calibration, "calibration", offline)
        _check_text(self.evaluation, "evaluation", offline)


def _check_text(text: str, purpose: Purpose, offline: bool) -> None:
    """Raises InputError where a SOURCE cannot be read; offline what is on the hub is not looked for."""
    if text == AUTO:
        return
    source = parse_source(text)
    if not (offline and any(part.kind == "hub" for part in source.parts)):
        check_source(source, purpose)
