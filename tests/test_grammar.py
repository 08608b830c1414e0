"""`name,setting=value,...`: every setting of every method, repair and form is read, written and listed, also those of
other distributions."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from depthcut.importance import METRICS
from depthcut.methods.evolutionary import Evolutionary
from depthcut.methods.greedy import Greedy
from depthcut.methods.problem import SEARCHES
from depthcut.registry import Registry, say, split_names
from depthcut.run.recipe import REGISTRIES, Recipe
from depthcut.types import InputError

TESTS = Path(__file__).parent
ENTRIES = [
    pytest.param(registry, entry, id=f"{registry.kind} {entry.name}")
    for registry in REGISTRIES.values()
    for entry in registry
]

PLUGIN = '''
"""One of each kind in another distribution, with a setting."""
from dataclasses import dataclass

from depthcut.ablation.objectives import OBJECTIVES
from depthcut.ablation.objectives.js import JS
from depthcut.export import EXPORTS
from depthcut.export.zeroed import Zeroed
from depthcut.importance import METRICS, TokenMetric
from depthcut.repairs import REPAIRS
from depthcut.repairs.refit import LinearMap
from depthcut.methods.problem import SEARCHES
from depthcut.methods.fixed_order import FixedOrder
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
        candidates = problem.candidates()
        return [Step(remove=each) for start in range(self.stride) for each in candidates[start :: self.stride]][:-1]

@dataclass(frozen=True)
class Peak(TokenMetric):
    """The largest change of a channel.

    Attributes:
        place: in order of size.
    """

    place: int = 1

    def at_tokens(self, change):
        return change.update.values.abs().topk(self.place, dim=-1).values[..., -1]

@dataclass(frozen=True)
class Weighted(JS):
    """A multiple of js.

    Attributes:
        weight: the factor.
    """

    weight: float = 2.0

    def at_positions(self, reference, pruned, targets):
        return self.weight * super().at_positions(reference, pruned, targets)

@dataclass(frozen=True)
class Half(LinearMap):
    """A part of the map.

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
METRICS.register("peak", Peak, summary="largest change", source="another")
OBJECTIVES.register("weighted-js", Weighted, summary="a multiple of js", source="another")
REPAIRS.register("half", Half, summary="a part of the map", source="another")
EXPORTS.register("marked", Marked, summary="zeroed and marked", source="another")
'''
NEW = {
    "method": "every-other,stride=3",
    "metric": "peak,place=2",
    "objective": "weighted-js,weight=3.0",
    "repair": "half,part=0.25",
    "export": "marked,mark=y",
}
USES = """
import contextlib, io, json, sys
import pytest
import tiny
from depthcut import cli
from depthcut.run.recipe import REGISTRIES, Recipe

new, folder = json.loads(sys.argv[1]), sys.argv[2]

def depthcut(*words):
    sys.argv = ["depthcut", *words]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            cli.main()
        except SystemExit as ended:
            assert not ended.code, words
    return printed.getvalue()

everything = depthcut("ls").split()
schema = json.loads(depthcut("schema"))["properties"]
for option, text in new.items():
    name, _, setting = text.partition(",")
    word, _, value = setting.partition("=")
    entry = REGISTRIES[option].find(name)
    assert name in everything, "in ls"
    assert f"  {name},{word}=" in depthcut("ls", name) and entry.settings()[word].meaning in depthcut("ls", name)
    assert schema[option]["names"][name]["settings"][word]["description"] == entry.settings()[word].meaning
    assert str(getattr(REGISTRIES[option].parse(text)[1], word)) == value, "in Python"

# On the command line, in the recipe that it makes and in what is written.
tiny.reload_in_process(pytest.MonkeyPatch())
tiny.save(tiny.Path(folder) / "model")
text = [folder + "/model", "--remove", "1", "--calibration-samples", "4", "--calibration-length", "16"]
measured = ["--evaluation-samples", "2", "--evaluation-length", "16", "--no-speed", "--repair-samples", "4"]
whole = [word for option in ("method", "export", "repair") for word in (f"--{option}", new[option])]
whole += ["--compare", "one-shot,metric=peak,metric.place=2"]
depthcut("prune", *text, *measured, *whole, "-o", folder + "/a")
depthcut("search", *text, "--objective", new["objective"], "--unit", "block", "-o", folder + "/b")
recipe = Recipe.build(**__import__("yaml").safe_load(open(folder + "/a/recipe.yaml")))
assert recipe.method == new["method"] and recipe.build_search().stride == 3 and recipe.repairs[0][1].part == 0.25
assert json.load(open(folder + "/a/repair.json"))[0]["settings"]["part"] == 0.25
assert (tiny.Path(folder) / "a" / "marked" / "config.json").is_file()
assert "peak,place=2" in open(folder + "/a/scores.json").read()
assert json.load(open(folder + "/b/plan.json"))["objective"] == new["objective"]
"""
CONTRACTS = [
    "test_grammar.py::test_every_setting_is_said_and_reads_as_it_is_written",
    "docs/test_docstrings.py",
    "methods/test_contract.py",
    "importance/test_metrics.py",
    "importance/test_objectives.py",
    "repairs/test_every_repair.py",
    "export/test_every_form.py",
]


@pytest.mark.parametrize(("registry", "entry"), ENTRIES)
def test_every_setting_is_said_and_reads_as_it_is_written(registry, entry):
    settings = entry.settings()
    assert all(setting.meaning for setting in settings.values()), "its class says under Attributes what each setting is"
    written = ",".join([entry.name, *(say(name, each.default) for name, each in settings.items())])
    assert registry.parse(written) == (entry.name, entry.make())
    assert entry.summary
    assert entry.source


def test_settings_are_numbers_truths_words_and_lists():
    recipe = Recipe.build(model="x", method="greedy,strategy=exhaustive, swap=false,num_racers=3", remove="2")
    assert recipe.build_search() == Greedy(strategy="exhaustive", swap=False, num_racers=3)
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
        ({"export": ("gguf", "gguf,tensor_type=q8_0")}, "names one format twice"),
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
    assert "  wikitext,join=lines  (eos or lines)" in command("ls", "wikitext")
    assert "unknown name 'evopres'; did you mean evopress?" in command("ls", "evopres", code=2)


def offer(folder, module, text):
    """Makes a folder say that it is an installed distribution, with one module for all entry points."""
    (folder / f"{module}.py").write_text(text)
    about = folder / f"{module}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    groups = "".join(f"[{registry.group}]\nall = {module}\n" for registry in REGISTRIES.values())
    (about / "entry_points.txt").write_text(groups)


def distribution(folder, module, text, script, *words):
    """Runs a script beside such a folder."""
    offer(folder, module, text)
    path = os.pathsep.join(filter(None, [str(folder), str(TESTS), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", script, *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=TESTS, check=False)


def test_one_file_of_another_distribution_is_in_every_place(tmp_path):
    done = distribution(tmp_path, "another", PLUGIN, USES, json.dumps(NEW), str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_contract_tests_go_through_what_another_distribution_adds(tmp_path):
    names = [text.split(",")[0] for text in NEW.values()]
    script = f"import pytest, sys; sys.exit(pytest.main(['-vv', *{CONTRACTS!r}, '-k', {' or '.join(names)!r}]))"
    done = distribution(tmp_path, "another", PLUGIN, script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(re.search(rf"\[.*{name}.*\] PASSED", done.stdout) for name in names), done.stdout


def test_a_distribution_that_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    offer(tmp_path, "broken", "import nothing_of_that_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    methods = Registry("method", "depthcut.methods", "depthcut.methods")
    with pytest.raises(InputError, match=r"broken offers the method 'all', which cannot be loaded \(ModuleNotFoundErr"):
        list(methods)
