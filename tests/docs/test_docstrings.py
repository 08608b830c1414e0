"""What the API reference shows is said: every public name, every parameter of a command, every hyper-parameter."""

import dataclasses
import functools
import importlib
import inspect
import re

import pytest

import depthcut
from depthcut.run.options import PANELS, option_of
from depthcut.run.recipe import REGISTRIES, Recipe

COMMANDS = ("apply", "bypass", "prune", "resolve", "score")
CLASSES = [name for name in depthcut.__all__ if inspect.isclass(getattr(depthcut, name))]
METHODS = [
    pytest.param(entry, id=f"{registry.kind} {entry.name}") for registry in REGISTRIES.values() for entry in registry
]


def section(text, title):
    """The entries of a Google section, by name; empty where there is none."""
    found = re.search(rf"^{title}:\n((?:[ \t]+.*\n?|\n)+)", inspect.cleandoc(text or "") + "\n", re.MULTILINE)
    if found is None:
        return {}
    entries = re.findall(r"^    ([\w, ]+): (.+)$", found[1], re.MULTILINE)
    return {name.strip(): meaning for names, meaning in entries for name in names.split(",")}


def class_of(entry):
    """The dataclass that a registered method is built as."""
    make = entry.make
    while isinstance(make, functools.partial):
        make = make.func
    return make if inspect.isclass(make) else type(make())


def made_up_docstring(cls):
    """What a dataclass without a docstring is given by Python."""
    return f"{cls.__name__}{inspect.signature(cls)}".removesuffix(" -> None")


def methods(cls):
    """What a class defines for the public: plain methods, class methods and properties, by name."""
    for name, value in vars(cls).items():
        function = getattr(value, "__func__", getattr(value, "fget", value))
        if not name.startswith("_") and inspect.isfunction(function) and function.__module__.startswith("depthcut"):
            yield name, function


@pytest.mark.parametrize("name", COMMANDS)
def test_every_parameter_result_and_error_of_a_command_is_described(name):
    function = getattr(depthcut, name)
    parameters = [p.name for p in inspect.signature(function).parameters.values()]
    assert parameters and set(section(function.__doc__, "Args")) == set(parameters)
    assert re.search(r"^\s*(Returns|Yields):$", function.__doc__, re.MULTILINE) or name == "bypass"
    assert section(function.__doc__, "Raises")


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_method_says_what_it_gives(name):
    for method, function in methods(getattr(depthcut, name)):
        assert function.__doc__, f"{name}.{method}"


@pytest.mark.parametrize("name", CLASSES)
def test_what_takes_tensors_says_their_shapes(name):
    for method, function in methods(getattr(depthcut, name)):
        tensors = [
            parameter.name
            for parameter in inspect.signature(function).parameters.values()
            if "torch.Tensor" in str(parameter.annotation)
        ]
        described = section(function.__doc__, "Args")
        for parameter in tensors:
            assert "(" in described.get(parameter, ""), f"{name}.{method}: the shape of {parameter}"


@pytest.mark.parametrize("entry", METHODS)
def test_every_hyper_parameter_of_a_method_is_described(entry):
    cls = class_of(entry)
    described = {}
    for base in cls.__mro__:
        described |= section(vars(base).get("__doc__"), "Attributes")
    assert cls.__doc__ != made_up_docstring(cls)
    missing = {field.name for field in dataclasses.fields(cls)} - described.keys()
    assert not missing, f"{cls.__module__}.{cls.__qualname__}: {sorted(missing)}"
    assert entry.summary and entry.source


@pytest.mark.parametrize("entry", METHODS)
def test_the_source_of_a_method_stands_where_it_is_defined(entry):
    paper = re.search(r"arXiv (\d{4}\.\d{5})", entry.source)
    cls = class_of(entry)
    files = {base.__module__ for base in cls.__mro__ if base.__module__.startswith("depthcut")}
    text = "".join(inspect.getsource(importlib.import_module(name)) for name in files)
    assert paper is None or paper[1] in text


def test_every_option_of_a_recipe_is_described_or_plain():
    assert all(field.description and option_of(field)["panel"] in PANELS for field in Recipe.model_fields.values())
