"""A study as one file: `study: sweep`, what the study asks, and beside it the options of a run.

Checked before any weight loads, like the recipe of a run. `tradeoff` has no such file: it is about questions that lie
in files of one's own, so it is asked on the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from depthcut.registry import unknown_name
from depthcut.run.options import AUTO
from depthcut.run.recipe import Recipe
from depthcut.run.texts import READ
from depthcut.studies.compare import budgets_of, compare
from depthcut.studies.inspection import inspect
from depthcut.studies.paths import ask_method, check_methods
from depthcut.studies.questions import QUESTIONS, Compare, Inspect, StudyQuestion, Sweep
from depthcut.studies.study import Study
from depthcut.studies.sweep import sweep
from depthcut.types import InputError, first_problem

OF_RUNS_ALONE = ("export", "generation", "compare", "speed", "effort")
"""Options that no study looks at."""


@dataclass(frozen=True)
class StudyRecipe:
    """A study that can be run.

    Attributes:
        recipe: the model, the texts, and for `inspect` the method.
    """

    question: StudyQuestion
    recipe: Recipe

    @classmethod
    def build(cls, options: Mapping[str, object]) -> Self:
        """A study from the lines of a file.

        Raises:
            InputError: the study or an option is unknown, or out of range.
        """
        name = str(options["study"])
        if name not in QUESTIONS:
            raise InputError(unknown_name("study", name, list(QUESTIONS)))
        own = QUESTIONS[name].model_fields
        unused = [*OF_RUNS_ALONE, *(["method"] if "methods" in own else [])]
        for option in options:
            if option in unused:
                raise InputError(f"the study {name} takes no {option}; leave it out")
        try:
            question = QUESTIONS[name].model_validate({key: options[key] for key in own if key in options})
        except ValidationError as error:
            raise InputError(f"the recipe is not valid: {first_problem(error)}") from error
        given = {key: value for key, value in options.items() if key not in own}
        recipe = Recipe.build(**{**question.defaults, **given})
        # Methods are compared on one text, which those of one pass would not wait for.
        return cls(question, recipe.model_copy(update={"calibration": READ}) if recipe.calibration == AUTO else recipe)

    def check(self, *, offline: bool = False) -> None:
        """All checks that need neither model nor tokenizer.

        Args:
            offline: whether data sets of the hub are taken to be as they are named.

        Raises:
            InputError: a method, metric, amount, repair or source is wrong.
        """
        end = {"end": {"remove": self.recipe.remove or ""}}
        if isinstance(self.question, Inspect):
            ask_method(self.recipe, self.recipe.method, end, offline=offline)
            return
        check_methods(self.question.methods)
        budgets = budgets_of(self.question.ratios) if isinstance(self.question, Compare) else end
        for name in self.question.methods:
            for asked in ask_method(self.recipe, name, budgets, offline=offline).values():
                for repairs in self.question.repair:
                    asked.model_copy(update={"repair": repairs}).check(offline=offline)

    def run(self, output: Path, *, overwrite: bool = False, resume: bool = False, command: str = "") -> Study:
        """Runs the study and writes its folder.

        Raises:
            InputError: something cannot be done; found before weights load where that is possible.
        """
        question, recipe = self.question, self.recipe
        how: dict[str, Any] = {"overwrite": overwrite, "resume": resume, "command": command}
        if isinstance(question, Inspect):
            return inspect(recipe, output, **how)
        how |= {"methods": question.methods, "repairs": question.repair}
        if isinstance(question, Sweep):
            return sweep(recipe, output, every=question.every, **how)
        return compare(recipe, output, ratios=question.ratios, **how)
