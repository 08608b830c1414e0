"""The recipes that depthcut carries, one file a result of a paper or a use, and how a recipe is found and read.

A recipe file holds the options of `depthcut prune`, or `study: NAME` and those of a study. Its first comment says what
it is, the next ones what it reproduces or serves, what it costs and what to expect. What stands under `small:` replaces
options, so that the same run can be tried on a CPU in a minute or two. Reading one imports neither torch nor
transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from depthcut.registry import unknown_name
from depthcut.types import InputError, require_regular

if TYPE_CHECKING:
    from depthcut.run.recipe import Recipe
    from depthcut.studies.recipe import StudyRecipe

FOLDER = Path(__file__).parent
SMALL = "small"


@dataclass(frozen=True)
class PackagedRecipe:
    """A recipe that depthcut carries.

    Attributes:
        summary: what it is, from its first comment.
        notes: the other comments at its head by their first word: `Reproduces` or `Use`, `Cost`, `Expect`, `Small`.
    """

    name: str
    path: Path
    summary: str
    notes: dict[str, str]


def packaged_recipes() -> list[PackagedRecipe]:
    """All of them by name."""
    return [_describe(path) for path in sorted(FOLDER.glob("*.yaml"))]


def _describe(path: Path) -> PackagedRecipe:
    summary, notes, now = "", dict[str, str](), ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").strip()
        word, colon, rest = text.partition(":")
        if colon and word.isalpha():
            now = word
            notes[now] = rest.strip()
        elif now:
            notes[now] += f" {text}"
        else:
            summary = f"{summary} {text}".strip()
    return PackagedRecipe(path.stem, path, summary, notes)


def find_recipe(name: str) -> Path:
    """The file that a name stands for: a path, or a packaged recipe.

    Raises:
        InputError: there is neither.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    known = {recipe.name: recipe.path for recipe in packaged_recipes()}
    if name not in known:
        raise InputError(f"{unknown_name('recipe', name, list(known))}; a file of your own ends in .yaml")
    return known[name]


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


def recipe_options(path: Path, *, small: bool = False) -> dict[str, object]:
    """What a recipe file, or its small variant, sets.

    Raises:
        InputError: the file is missing or no recipe, or it has no small variant.
    """
    options = read_options(path)
    changes = options.pop(SMALL, None)
    if changes is not None and not isinstance(changes, dict):
        raise InputError(f"what stands under small: in the recipe {path} is no list of options")
    if small:
        if changes is None:
            raise InputError(f"the recipe {path} has no small variant; leave --small out")
        options |= changes
        options = {name: value for name, value in options.items() if value is not None}
    return options


def load_recipe(path: Path, *, small: bool = False) -> Recipe | StudyRecipe:
    """Reads a recipe file, or its small variant.

    Raises:
        InputError: the file is missing or no recipe, or it has no small variant.
    """
    from depthcut.run.recipe import Recipe
    from depthcut.studies.recipe import StudyRecipe

    options = recipe_options(path, small=small)
    return StudyRecipe.build(options) if "study" in options else Recipe.build(**options)


def check_recipe(path: Path) -> None:
    """All checks of a recipe file that need neither model, tokenizer nor network, and those of its small variant.

    Raises:
        InputError: something in it cannot be done.
    """
    load_recipe(path).check(offline=True)
    if SMALL in read_options(path):
        load_recipe(path, small=True).check(offline=True)
