"""One run as the pages show it: the artefacts of its directory, and how it was made."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import yaml

from depthcut.results import GenerationSample, Measurement, Repair, read_list
from depthcut.types import InputError, Plan, ScoreTable


@dataclass(frozen=True)
class Run:
    """What one run left.

    Attributes:
        plan: the path; its applied steps are what the page calls removed.
        scores: None where no static scores were computed; the map then shows sizes only.
        measurements: shares of the whole model are shown where `parameters` of `dense` is among them.
        command: what reproduces the model, as one would type it.
        software: name to version.
        repairs: what was done to the model after the removal, in order.
        generation: what the dense and the pruned model write after the same prompts.
        recipe: the options of `prune` as YAML, empty where the model was made otherwise.
        name: what tells this run from others on one page.
    """

    plan: Plan
    scores: ScoreTable | None = None
    measurements: Sequence[Measurement] = ()
    command: str = ""
    software: Mapping[str, str] = field(default_factory=dict)
    repairs: Sequence[Repair] = ()
    generation: Sequence[GenerationSample] = ()
    recipe: str = ""
    name: str = ""

    @classmethod
    def from_directory(cls, directory: Path) -> Self:
        """Reads what `prune` or `apply` wrote.

        Raises:
            InputError: the plan or the results are missing, or an artefact holds something else.
        """
        plan = Plan.from_file(directory / "plan.json")
        measurements = read_list(Measurement, directory / "results.json")
        scores, repairs, generation = (directory / f"{name}.json" for name in ("scores", "repair", "generation"))
        recipe = directory / "recipe.yaml"
        text = _recipe_text(recipe) if recipe.is_file() else ""
        made = ["run", str(recipe)] if text else ["apply", plan.model.source, str(directory / "plan.json")]
        return cls(
            plan=plan,
            scores=ScoreTable.from_file(scores) if scores.is_file() else None,
            measurements=measurements,
            command=shlex.join(["depthcut", *made, "-o", "OUT"]),
            software={"measured with": measurements[0].software} if measurements else {},
            repairs=read_list(Repair, repairs) if repairs.is_file() else (),
            generation=read_list(GenerationSample, generation) if generation.is_file() else (),
            recipe=text,
            name=directory.resolve().name,
        )

    def require_sizes(self) -> None:
        """Raises InputError where the plan removes a unit and does not hold its size."""
        for step in self.plan.steps:
            for unit in step.remove:
                if str(unit) not in self.plan.unit_sizes:
                    raise InputError(
                        f"the plan removes {unit} but does not hold its size, which the report shows; make the plan "
                        "with `depthcut prune`, which writes `unit_sizes` into it"
                    )

    @property
    def apply_command(self) -> str:
        """The command that applies a plan of this path, repaired as this run was; only `--steps` is left to add."""
        model = self.plan.model
        words = ["depthcut", "apply", model.source, "plan.json", "-o", "OUT"]
        if model.revision:
            words += ["--revision", model.revision]
        if self.repairs:
            text, held_out = self.repairs[0].text, self.repairs[0].held_out
            words += ["--repair", self._repair, "--repair-text", text.source]
            words += ["--repair-samples", str(text.num_samples + held_out.num_samples)]
        return shlex.join(words)

    @property
    def _repair(self) -> str:
        """The repairs as they were asked for; by their names where the recipe leaves them to the default."""
        options = yaml.safe_load(self.recipe)
        asked = options.get("repair") if isinstance(options, dict) else None
        return str(asked or "+".join(repair.method for repair in self.repairs))


def _recipe_text(file: Path) -> str:
    """The text of a recipe, not checked again, because it was checked when it was run."""
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"the recipe {file} is no YAML text: {' '.join(str(error).split())}") from error
    return text
