"""`name,setting=value,...`: every setting of every method, repair and form is read, written and listed, also those of
other distributions."""

import os
import subprocess
import sys

import pytest

from depthcut.export import EXPORTS
from depthcut.importance import METRICS
from depthcut.registry import say, split_names
from depthcut.repair import REPAIRS
from depthcut.run.recipe import REGISTRIES, Recipe
from depthcut.search.evolutionary import Evolutionary
from depthcut.search.greedy import Greedy
from depthcut.search.problem import SEARCHES
from depthcut.types import InputError

ENTRIES = [
    pytest.param(registry, entry, id=f"{registry.kind} {entry.name}") for registry in REGISTRIES for entry in registry
]

PLUGIN = '''
"""A search, a repair and a form of another distribution, each with a setting."""
from dataclasses import dataclass
from typing import ClassVar

from depthcut.export import EXPORTS
from depthcut.importance import METRICS
from depthcut.export.zeroed import Zeroed
from depthcut.importance import METRICS
from depthcut.repair import REPAIRS
from depthcut.repair.emulate import Bias
from depthcut.search.problem import SEARCHES
from depthcut.search.fixed_order import FixedOrder
from depthcut.types import Step

@dataclass(frozen=True)
class EveryOther(FixedOrder):
    """Every other unit.

    Attributes:
        stride: units from one removal to the next.
    """

    order: str = "reverse"
    stride: int = 2

    def path(self, problem):
        return [Step(remove=each) for each in problem.candidates()[:: self.stride]]

@dataclass(frozen=True)
class Half(Bias):
    """A part of the mean.

    Attributes:
        part: how much of it.
    """

    part: float = 0.5

@dataclass(frozen=True)
class Marked(Zeroed):
    """Zeroed, with a mark.

    Attributes:
        mark: the mark.
    """

    mark: str = "x"

SEARCHES.register("every-other", EveryOther, summary="every other unit", source="another")
REPAIRS.register("half", Half, summary="half of the mean", source="another")
EXPORTS.register("marked", Marked, summary="zeroed and marked", source="another")
'''
USES = """
import sys
from depthcut import cli
from depthcut.export import EXPORTS
from depthcut.importance import METRICS
from depthcut.run.recipe import REGISTRIES, Recipe
said = {"method": "every-other,stride=3", "repair": "half,part=0.25", "export": ("marked,mark=y",)}
recipe = Recipe.build(model="x", remove="2", **said)
recipe.check()
print(recipe.build_search().stride, recipe.repairs[0][1].part, EXPORTS.parse(recipe.export[0])[1].mark)
for name in ("every-other", "half", "marked"):
    sys.argv = ["depthcut", "ls", name]
    try:
        cli.main()
    except SystemExit:
        pass
"""


@pytest.mark.parametrize(("registry", "entry"), ENTRIES)
def test_every_setting_is_said_and_reads_as_it_is_written(registry, entry):
    settings = entry.settings()
    assert all(setting.meaning for setting in settings.values()), "its class says under Attributes what each setting is"
    written = ",".join([entry.name, *(say(name, each.default) for name, each in settings.items())])
    assert registry.parse(written) == (entry.name, entry.make())
    assert entry.summary
    assert entry.source


def test_settings_are_numbers_truths_words_and_lists():
    recipe = Recipe.build(model="x", method="greedy,strategy=exhaustive, swap=false,num_full=3/5", remove="2")
    assert recipe.build_search() == Greedy(strategy="exhaustive", swap=False, num_full=(3, 5))
    _, search = SEARCHES.parse("evopress,generations=40,stages=0.25:8")
    assert search == Evolutionary(generations=40, stages=((0.25, 8),))


def test_a_short_form_is_the_same_setting():
    said = Recipe.build(model="x", method="greedy,strategy=exhaustive,swap=false,objective=js", remove="2")
    short = Recipe.build(model="x", method="greedy,strategy=exhaustive", swap=False, objective="js", remove="2")
    assert said.build_search() == short.build_search() == Greedy(objective="js", strategy="exhaustive", swap=False)
    assert said.method_settings.keys() == short.method_settings.keys()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "greedy,strateg=lazy"}, "unknown setting of greedy 'strateg'; did you mean strategy"),
        ({"method": "greedy,strategy=quick"}, "greedy cannot be set so: strategy.*'lazy' or 'exhaustive'"),
        ({"method": "greedy,objective=kll"}, "^unknown objective 'kll'; did you mean kl"),
        ({"method": "greedy,swap=false", "swap": True}, "swap of the method is given twice"),
        ({"method": "greedy,swap=false,swap=true"}, "greedy is given swap twice"),
        ({"method": "one-shot,metric.power=2"}, "metric.power of one-shot is a setting of what metric names"),
        ({"method": "one-shot", "metric": "taylor,powr=2"}, "unknown setting of taylor 'powr'; did you mean power"),
        ({"method": "random,order=reverse"}, "unknown setting of random 'order'"),
        ({"export": ("gguf,tensor_typ=q8_0",)}, "unknown setting of gguf 'tensor_typ'; did you mean tensor_type"),
        ({"export": ("gguf", "gguf,tensor_type=q8_0")}, "names one form twice"),
        ({"compare": ("shortgpt,metrics=cosine",)}, "unknown setting of shortgpt 'metrics'; did you mean metric"),
    ],
)
def test_a_wrong_setting_is_one_sentence(options, words):
    with pytest.raises(InputError, match=words):
        Recipe.build(**{"model": "x", "remove": "2", **options}).check()


def test_a_setting_that_is_a_name_has_settings_of_its_own():
    recipe = Recipe.build(model="x", method="one-shot,metric=taylor,metric.power=2", remove="2")
    assert recipe.metrics == ("taylor,power=2",)
    short = Recipe.build(model="x", method="one-shot", metric="taylor,power=2", remove="2")
    assert recipe.build_search() == short.build_search()
    assert METRICS.canonical("taylor,power=1") == "taylor"
    assert SEARCHES.canonical(recipe.method) == recipe.method


def test_a_setting_belongs_to_the_name_before_it():
    assert split_names("gguf,tensor_type=q8_0, zeroed") == ["gguf,tensor_type=q8_0", "zeroed"]
    assert split_names("") == []


def test_ls_of_a_name_lists_its_settings_and_names_the_nearest(command):
    for _, entry in (each.values for each in ENTRIES):
        printed = command("ls", entry.name)
        assert entry.source in printed
        for name in entry.settings():
            assert f"  {entry.name},{name}=" in printed
    assert "unknown name 'evopres'; did you mean evopress?" in command("ls", "evopres", code=2)


def distribution(folder, module, text):
    """A folder on the path that says it is an installed distribution with one module for all entry points."""
    (folder / f"{module}.py").write_text(text)
    about = folder / f"{module}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    groups = "".join(f"[{registry.group}]\nall = {module}\n" for registry in (SEARCHES, REPAIRS, EXPORTS))
    (about / "entry_points.txt").write_text(groups)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([sys.executable, "-c", USES], capture_output=True, text=True, env=environment, check=False)


def test_a_file_of_another_distribution_is_found_set_and_listed(tmp_path):
    done = distribution(tmp_path, "another", PLUGIN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 0.25 y\n")
    for said in ("every-other,stride=2", "half,part=0.5", "marked,mark=x", "units from one removal to the next."):
        assert said in done.stdout


def test_a_distribution_that_cannot_be_loaded_is_named(tmp_path):
    done = distribution(tmp_path, "broken", "import nothing_of_that_name\n")
    assert done.returncode != 0
    assert "broken offers the method 'all', which cannot be loaded (ModuleNotFoundError" in done.stderr
