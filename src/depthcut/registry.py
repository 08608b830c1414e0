"""Methods by name. A folder is the list of its methods: every file in it registers what it offers, and is found by
scanning the folder, so that adding a method touches no other file."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from depthcut.types import InputError

T = TypeVar("T")


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


class Registry(Generic[T]):
    """The methods of one kind.

    Args:
        kind: what they are, for error messages and `depthcut ls`.
        package: the folder that is scanned, as an import path.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._entries: dict[str, Entry[T]] = {}

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

    def _scan(self) -> None:
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")


def unknown_name(kind: str, given: str, known: list[str]) -> str:
    """One sentence for a name that is not known: the nearest known ones first."""
    near = difflib.get_close_matches(given, known, n=3, cutoff=0.5)
    guess = f"did you mean {' or '.join(near)}? " if near else ""
    return f"unknown {kind} {given!r}; {guess}known: {', '.join(sorted(known))}"
