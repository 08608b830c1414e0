"""Methods by name, with settings: the grammar `name,setting=value,...` and where names come from.

A folder is the list of its methods: every file in it registers what it offers, and is found by scanning the folder, so
that adding a method touches no other file. Installed distributions add theirs by entry points: each names a module
that registers when it is imported, as the files here do. A name that a user or a file gives is only looked up.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from depthcut.types import InputError, first_problem

T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """One hyper-parameter that a user may give.

    Attributes:
        kind: its annotation, for people.
        default: what it is where left out.
        meaning: its entry in the docstring of the method's class.
    """

    name: str
    kind: str
    default: object
    meaning: str


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One registered method.

    Attributes:
        make: builds the method from its hyper-parameters, all of which have defaults.
        summary: one line for `depthcut ls`.
        source: the paper, or `ours`.
    """

    name: str
    make: Callable[..., T]
    summary: str
    source: str

    def settings(self) -> dict[str, Setting]:
        """What may be set, by name: the fields of the dataclass, less those that the name itself fixes.

        Fields that the registration passes by position are what the name means; those by keyword are its defaults.
        """
        made: Any = self.make()
        fixed = len(self.make.args) if isinstance(self.make, functools.partial) else 0
        meanings = _attributes(type(made))
        return {
            each.name: Setting(each.name, _plain(each.type), getattr(made, each.name), meanings.get(each.name, ""))
            for each in dataclasses.fields(made)[fixed:]
            if each.init
        }

    def schema(self) -> dict[str, Any]:
        """What it is, and the JSON schema of each of its settings."""
        known = TypeAdapter(type(self.make())).json_schema().get("properties", {})
        settings = {
            name: known[name] | {"default": setting.default, "description": setting.meaning}
            for name, setting in self.settings().items()
        }
        return {"summary": self.summary, "source": self.source, "settings": settings}

    def set(self, given: dict[str, str]) -> T:
        """The method with settings as text; a list is written `a/b`, and `a:b/c:d` where its items are lists.

        Raises:
            InputError: a setting is unknown, or a value is out of range.
        """
        made: Any = self.make()
        known = self.settings()
        for name in given:
            if name not in known:
                raise InputError(unknown_name(f"setting of {self.name}", name, list(known)))
        if not given:
            return typing.cast(T, made)
        hints = typing.get_type_hints(type(made), include_extras=True)
        values = {name: _read(text, hints[name]) for name, text in given.items()}
        now = {each.name: getattr(made, each.name) for each in dataclasses.fields(made) if each.init}
        try:
            return typing.cast(T, TypeAdapter(type(made)).validate_python(now | values))
        except ValidationError as error:
            cause = error.errors()[0].get("ctx", {}).get("error")
            if isinstance(cause, InputError):
                raise cause from error
            raise InputError(f"{self.name} cannot be set so: {first_problem(error)}") from error


class Registry(Generic[T]):
    """The methods of one kind.

    Args:
        kind: what they are, for error messages and `depthcut ls`.
        package: the folder that is scanned, as an import path.
        group: entry points by which installed distributions add theirs.
    """

    def __init__(self, kind: str, package: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._package = package
        self._entries: dict[str, Entry[T]] = {}
        self._is_scanned = False

    def register(self, name: str, make: Callable[..., T], *, summary: str, source: str) -> None:
        """Adds a method; called once, at the end of the file that defines it."""
        assert name not in self._entries, f"{self.kind} {name!r} is registered twice"
        self._entries[name] = Entry(name, make, summary, source)

    def __iter__(self) -> Iterator[Entry[T]]:
        self._scan()
        return iter(sorted(self._entries.values(), key=lambda entry: entry.name))

    def find(self, name: str) -> Entry[T]:
        """The method of that name.

        Raises:
            InputError: there is none; names the nearest.
        """
        self._scan()
        if name not in self._entries:
            raise InputError(unknown_name(self.kind, name, list(self._entries)))
        return self._entries[name]

    def parse(self, text: str) -> tuple[str, T]:
        """Reads `name` or `name,setting=value,...`.

        Returns:
            The name, and the method so set.

        Raises:
            InputError: the name or a setting is unknown, or a value is out of range.
        """
        name, given = split_settings(text)
        return name, self.find(name).set(given)

    def canonical(self, text: str) -> str:
        """The shortest text of the same: settings in the order of the fields, without those that say the default."""
        name, made = self.parse(text)
        settings = self.find(name).settings().values()
        said = {each.name: getattr(made, each.name) for each in settings}
        changed = (say(each.name, said[each.name]) for each in settings if said[each.name] != each.default)
        return ",".join([name, *changed])

    def __contains__(self, text: str) -> bool:
        """Whether what is written before the settings is a name of this registry."""
        self._scan()
        return split_settings(text)[0] in self._entries

    def _scan(self) -> None:
        if self._is_scanned:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        for point in entry_points(group=self.group):
            try:
                point.load()
            except Exception as error:
                owner = point.dist.name if point.dist else "a distribution"
                raise InputError(
                    f"{owner} offers the {self.kind} {point.name!r}, which cannot be loaded "
                    f"({type(error).__name__}: {error}); mend or uninstall {owner}"
                ) from error
        self._is_scanned = True


def split_settings(text: str) -> tuple[str, dict[str, str]]:
    """The name and the settings of `name,setting=value,...`; a name among them takes its own as `setting.its=value`.

    Raises:
        InputError: a part is no setting, or one is given twice.
    """
    name, *parts = (part.strip() for part in text.split(","))
    given: dict[str, str] = {}
    for part in parts:
        key, _, value = (word.strip() for word in part.partition("="))
        if key in given:
            raise InputError(f"{name} is given {key} twice; leave one of {key}={given[key]} and {part} out")
        given[key] = value
    for key in [key for key in given if "." in key]:
        # `metric=taylor,metric.power=2`: the setting's own setting belongs to what it names.
        whole, _, inner = key.partition(".")
        if whole not in given:
            raise InputError(f"{key} of {name} is a setting of what {whole} names; give {whole}=NAME too")
        given[whole] += f",{inner}={given.pop(key)}"
    return name, given


def split_names(text: str) -> list[str]:
    """The items of a list such as `gguf,tensor_type=q8_0,zeroed`: a setting belongs to the name before it."""
    items: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if "=" in part and items:
            items[-1] += f",{part}"
        else:
            items.append(part)
    return items


def _read(text: str, hint: Any) -> Any:
    """A setting's text as pydantic takes it: lists apart, `none` for nothing."""
    if typing.get_origin(hint) is typing.Annotated:
        return _read(text, typing.get_args(hint)[0])
    if text == "none" and type(None) in typing.get_args(hint):
        return None
    if typing.get_origin(hint) is typing.Literal:
        return next((word for word in typing.get_args(hint) if str(word) == text), text)
    if typing.get_origin(hint) is not tuple:
        return text
    items = text.split("/")
    inner = typing.get_args(hint)[0]
    return tuple(item.split(":") for item in items) if typing.get_origin(inner) is tuple else tuple(items)


def say(setting: str, value: object) -> str:
    """A setting as a user writes it; `split_settings` and `_read` read it back."""
    return f"{setting}={write_setting(value)}".replace(",", f",{setting}.")


def write_setting(value: object) -> str:
    """A setting's value in words."""
    if isinstance(value, tuple):
        nested = any(isinstance(item, tuple) for item in value)
        return "/".join(":".join(map(write_setting, item)) if nested else write_setting(item) for item in value)
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _plain(annotation: object) -> str:
    """An annotation as a user reads it."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(
        r"Literal\[(.*?)\]", lambda match: match[1].replace('"', "").replace("'", "").replace(",", " or"), text
    )


def _attributes(cls: type) -> dict[str, str]:
    """What a class and those it inherits from say of their attributes, by name, each in one line."""
    meanings: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        _, _, section = inspect.cleandoc(each.__doc__ or "").partition("Attributes:\n")
        for names, meaning in re.findall(r"^    ([\w, ]+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE):
            meanings |= dict.fromkeys(re.split(", *", names), " ".join(meaning.split()))
    return meanings


def unknown_name(kind: str, given: str, known: list[str]) -> str:
    """One sentence for a name that is not known: the nearest known ones first."""
    near = difflib.get_close_matches(given, known, n=3, cutoff=0.5)
    guess = f"did you mean {' or '.join(near)}? " if near else ""
    return f"unknown {kind} {given!r}; {guess}known: {', '.join(sorted(known))}"
