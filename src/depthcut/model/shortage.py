"""What is done when memory runs out: first less runs at once, then what is kept to save work is given up."""

from __future__ import annotations

import re
import sys
import weakref
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch

from depthcut.model.device import free_cached_memory
from depthcut.process.faults import is_out_of_memory
from depthcut.types import ResourceError

Found = TypeVar("Found")


class Spare(Protocol):
    """Something that keeps what it could compute again."""

    def give_up(self) -> bool:
        """Gives up a part of what is kept, for good; returns whether there was any."""
        ...


_spares: list[weakref.ref[Spare]] = []
_told: set[str] = set()


def offer(spare: Spare) -> None:
    """Has something asked when memory runs out, as long as it lives; the last that was offered is asked first."""
    _spares[:] = [weakref.ref(spare), *(known for known in _spares if known() is not None)]


def give_up(device: torch.device) -> bool:
    """Has what is kept be given up, a part of it at a time; returns whether there was any.

    To be called where the error that said so is gone: it holds what was computed with.
    """
    found = any(spare.give_up() for known in _spares if (spare := known()) is not None)
    free_cached_memory(device)
    return found


class LogitPieces:
    """How large a piece of the logits is made at a time: half as large from where memory runs out on.

    Args:
        most: bytes at first.
        least: bytes of one position, which cannot be divided.
        device: that the logits are on.
    """

    def __init__(self, most: int, least: int, device: torch.device) -> None:
        self._size, self._least, self._device = most, least, device

    def run(self, work: Callable[[int], Found]) -> Found:
        """What a work makes of pieces of so many bytes; done anew with smaller ones where there is no memory for it.

        Raises:
            ResourceError: there is none for one position.
        """
        while True:
            try:
                return work(self._size)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            say_once("no memory for so many logits at a time: they are made in smaller pieces")
            divisible, self._size = self._size > self._least, max(1, self._size // 2)
            if not give_up(self._device) and not divisible:
                raise ResourceError("there is no memory for the logits of one position; free some")


def say_once(words: str) -> None:
    """Says on standard error that memory is short: once in a process, whatever numbers the words have."""
    kind = re.sub(r"\d+", "", words)
    if kind not in _told:
        _told.add(kind)
        print(words, file=sys.stderr)


def forget() -> None:
    """Has all be said once more."""
    _told.clear()
