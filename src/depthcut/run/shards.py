"""One search divided among processes that never meet: the jobs of a job array, each with a folder beside the output.

A shard evaluates its share of all that can be known without the others and ends. `merge` puts what all of them found
into the folder of the unfinished run, where the shards of the next array, or one process with `--resume`, find it.
"""

from __future__ import annotations

import glob
import re
import shutil
from dataclasses import replace
from pathlib import Path

from depthcut.process.journal import replace_lines, whole_lines
from depthcut.process.ranks import Shard, ShareDoneError
from depthcut.process.workspace import check_output, locked, work_folder
from depthcut.run.heads import settle_objective
from depthcut.run.plan import JOURNALS, find_plan
from depthcut.run.recipe import Recipe
from depthcut.run.session import find_model, load, pose_problem, prepare
from depthcut.run.texts import settle_texts
from depthcut.run.write import RECIPE, require_same_recipe
from depthcut.types import InputError, Record


class Share(Record):
    """What a shard has done: `share.json` in its folder, there once it has ended.

    Attributes:
        evaluations: sets that it evaluated, each on one batch of sequences.
        waits: whether the search needs what other shards find; else it has found its plan.
    """

    evaluations: int
    waits: bool


SHARE = "share.json"


def evaluate_share(recipe: Recipe, output: Path, shard: Shard) -> str:
    """Evaluates what one shard can without the others; what an earlier process of it found is not evaluated again.

    Returns:
        What was done and what to do next, for people.

    Raises:
        InputError: the recipe's search has nothing to divide, or its result would differ between machines.
    """
    recipe.check()
    budget = recipe.parsed_budget
    if budget.is_timed:
        raise InputError(
            "every shard would measure a latency of its own and search for another plan; give --budget parameters=... "
            "with --shard, or divide the work by torchrun"
        )
    if recipe.build_search().needs != "objective" and budget.kind != "increase":
        raise InputError(
            f"method {recipe.method} evaluates no removed sets that shards could divide; leave --shard out: it takes "
            "one pass at most"
        )
    check_output(output, overwrite=False, resume=True)
    source = find_model(recipe)
    recipe = settle_objective(recipe, source)
    recipe = settle_texts(recipe, source)
    problem = pose_problem(recipe, source)
    prepared = prepare(recipe, source, ("calibration",))
    merged = work_folder(output)
    folder = merged.with_name(f"{merged.name}.shard-{shard.index + 1}-of-{shard.count}")
    with locked(folder, _lock(folder)):
        if merged.is_dir():
            require_same_recipe(recipe, merged)
            shard = replace(shard, merged=merged)
        folder.mkdir(exist_ok=True)
        require_same_recipe(recipe, folder)
        (folder / SHARE).unlink(missing_ok=True)
        waits = False
        try:
            find_plan(load(prepared, shard, folder), problem, folder, shard)
        except ShareDoneError:
            waits = True
        share = Share(evaluations=sum(len(lines) - 1 for lines in _journals(folder).values()), waits=waits)
        share.write(folder / SHARE)
    return (
        f"shard {shard}: {share.evaluations} evaluations are in {folder}; when all shards have ended, run: "
        f"depthcut merge -o {output}"
    )


def merge(output: Path) -> str:
    """Moves what the shards of an output have found into the folder of its unfinished run.

    Returns:
        What was done and what to do next, for people.

    Raises:
        InputError: there are no shards, one is missing or has not ended, or they are not of one run.
    """
    merged = work_folder(output)
    folders = _shard_folders(output)
    shares = [Share.from_file(folder / SHARE) for folder in folders]
    with locked(output, merged.with_suffix(".lock")):
        known = [merged, *folders] if merged.is_dir() else folders
        recipes = {(folder / RECIPE).read_text(encoding="utf-8") for folder in known}
        if len(recipes) > 1:
            raise InputError(f"the shards of {output} were begun with different options; see the {RECIPE} of each")
        merged.mkdir(exist_ok=True)
        (merged / RECIPE).write_text(recipes.pop(), encoding="utf-8")
        for name in JOURNALS:
            journals = [lines for folder in known if (lines := _journals(folder).get(name))]
            if len({lines[0] for lines in journals}) > 1:
                raise InputError(
                    f"the shards of {output} evaluated with different models or texts; give every shard the same ones"
                )
            if journals:
                replace_lines(merged / f"{name}.jsonl", [line for lines in journals for line in lines])
        for folder in folders:
            shutil.rmtree(folder)
            _lock(folder).unlink(missing_ok=True)
    num_evaluations = sum(share.evaluations for share in shares)
    finish = f"depthcut run {merged / RECIPE} -o {output} --resume"
    done = f"merged {num_evaluations} evaluations of {len(shares)} shards"
    if any(share.waits for share in shares):
        return f"{done}; give the same --shard commands again for what the search needs next, or finish it: {finish}"
    return f"{done}; nothing is left to evaluate, so finish it: {finish}"


def _shard_folders(output: Path) -> list[Path]:
    """The folders of all shards of an output, in order."""
    merged = work_folder(output)
    numbers: dict[tuple[int, int], Path] = {}
    for folder in merged.parent.glob(f"{glob.escape(merged.name)}.shard-*-of-*"):
        match = re.fullmatch(r"shard-(\d+)-of-(\d+)", folder.name.removeprefix(f"{merged.name}."))
        if match and folder.is_dir():
            numbers[int(match[1]), int(match[2])] = folder
    counts = {count for _, count in numbers}
    if not counts:
        raise InputError(f"there are no shards of {output} to merge; begin with depthcut prune ... --shard 1/N")
    if len(counts) > 1:
        found = ", ".join(f"{index}/{count}" for index, count in sorted(numbers))
        raise InputError(f"shards of different arrays lie beside {output} ({found}); remove the folders of all but one")
    count = counts.pop()
    folders = [numbers.get((index, count)) for index in range(1, count + 1)]
    missing = [str(place) for place, folder in enumerate(folders, 1) if not (folder and (folder / SHARE).is_file())]
    if missing:
        raise InputError(
            f"of the {count} shards of {output} {' and '.join(missing)} did not end yet; wait, or give --shard "
            f"{missing[0]}/{count} again"
        )
    return [folder for folder in folders if folder is not None]


def _journals(folder: Path) -> dict[str, list[str]]:
    """The lines of the journals in a folder, by name, the header first."""
    files = {name: folder / f"{name}.jsonl" for name in JOURNALS}
    return {name: whole_lines(file) for name, file in files.items() if file.is_file()}


def _lock(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")
