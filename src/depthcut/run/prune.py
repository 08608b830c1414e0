"""A run from its recipe to the written and verified directory: the stages in order, each a value in and a value out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel

from depthcut.methods.problem import Problem
from depthcut.model.load import ModelSource
from depthcut.process.ranks import ALONE, Ranks, join, was_restarted
from depthcut.process.workspace import check_output, workspace
from depthcut.results import Repair
from depthcut.run.heads import settle_objective
from depthcut.run.measure import ask, measure
from depthcut.run.plan import find_plan, find_rivals
from depthcut.run.recipe import Recipe
from depthcut.run.repair import check_division, repair
from depthcut.run.result import Result
from depthcut.run.session import PROBE_TOKENS, Loaded, find_model, load, pose_problem, prepare, settle_storage
from depthcut.run.texts import settle_texts
from depthcut.run.write import (
    bytes_on_disk,
    left_out,
    require_other_folder,
    require_same_recipe,
    write_artefacts,
    write_forms,
    write_model,
)
from depthcut.surgery import apply
from depthcut.types import Plan, ScoreTable, Unit


def prune_model(
    recipe: Recipe,
    output: Path | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    command: str = "",
    foretell: Callable[[Recipe, ModelSource, Problem], None] = lambda *_: None,
) -> Result:
    """Runs one recipe from the model to the written and verified directory.

    Args:
        output: directory to write; nothing is written where left out.
        command: what to show as the command that reproduces the result.
        foretell: called with the recipe as it is run, once all is checked and before weights load; not where several
            processes share the work.

    Returns:
        The result; of several ranks the first one's is whole, and the others have the plan without measurements, and
        a model that took part in no closed repair after the last training.

    Raises:
        InputError: something in the recipe cannot be done; found before weights load where that is possible.
        VerificationError: the written model is not the one in memory; no output appears.
    """
    ranks = join()
    resume = resume or was_restarted()
    with ranks.one_voice():
        recipe.check()
        check_division(recipe, ranks)
        if output is not None and ranks.is_first:
            check_output(output, overwrite=overwrite, resume=resume)
        recipe, source = settle_storage(recipe, find_model(recipe))
        recipe = settle_objective(recipe, source)
        recipe = settle_texts(recipe, source)
        problem = pose_problem(recipe, source)
        if output is not None:
            require_other_folder(output, source)
        prepared = prepare(recipe, source)
        if ranks.count == 1:
            foretell(recipe, source, problem)

        def run(folder: Path | None) -> Result:
            loaded = load(prepared, ranks, folder)
            scores, plan = find_plan(loaded, problem, folder, ranks)
            _tell_shares(loaded, ranks)
            rivals = find_rivals(loaded, problem, plan, scores) if ranks.is_first else {}
            return carry_out(loaded, plan, scores, folder, command, rivals, ranks)

        if output is None:
            return run(None)
        with workspace(output, overwrite=overwrite, resume=resume, ranks=ranks) as folder:
            if ranks.is_first:
                require_same_recipe(recipe, folder)
            result = run(folder)
    return replace(result, output=output if ranks.is_first else None)


@dataclass(frozen=True)
class Cut:
    """A model without what a plan removes, and what was done to it since."""

    model: PreTrainedModel
    repairs: tuple[Repair, ...] = ()


def carry_out(
    loaded: Loaded,
    plan: Plan,
    scores: ScoreTable | None,
    folder: Path | None,
    command: str,
    rivals: Mapping[str, tuple[Unit, ...]],
    ranks: Ranks = ALONE,
    cut: Cut | None = None,
) -> Result:
    """The stages after the search: removal, repair, measuring, writing, tasks, further formats, pages.

    Args:
        folder: where the result is written; nothing is where left out.
        command: what to show as the command that reproduces the result.
        rivals: removed units by name, measured beside the pruned model.
        ranks: the processes that train together; all else is done by the first.
        cut: the model without what the plan removes, where it is there already.
    """
    dense, architecture = loaded.stream.model, loaded.source.architecture
    cut = cut or Cut(apply(dense, architecture, plan.removed))
    pruned, repairs = repair(loaded, plan, cut.model, folder, ranks)
    result = Result(plan, scores, (), (*cut.repairs, *repairs), pruned, loaded.tokenizer)
    if not ranks.is_first:
        return result
    before = "repaired before" if any(record.kept for record in cut.repairs) else "not repaired"
    beside = {before: cut.model} if any(record.kept for record in repairs) else {}
    beside |= {method: apply(dense, architecture, removed) for method, removed in rivals.items()}
    measured = measure(loaded, plan, pruned, beside)
    if folder is not None:
        write_model(loaded, plan, pruned, folder)
    answered, generation = ask(loaded, pruned, folder)
    result = replace(result, measurements=(*measured, *answered), generation=generation)
    if folder is None:
        return result
    not_written = write_forms(loaded, pruned, folder, loaded.evaluation.input_ids[:1, :PROBE_TOKENS])
    measurements = (*result.measurements, *left_out(loaded.source), *bytes_on_disk(loaded.source, folder))
    result = replace(result, measurements=measurements, not_written=not_written)
    write_artefacts(loaded, result, folder, command)
    return result


def _tell_shares(loaded: Loaded, ranks: Ranks) -> None:
    shares = ranks.gather(loaded.stream.unit_evaluations)
    if ranks.count > 1:
        print(f"unit evaluations by rank: {', '.join(f'{share:,}' for share in shares)}", file=sys.stderr)
