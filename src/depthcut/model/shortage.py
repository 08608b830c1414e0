"""What is done when memory runs out: first less runs at once, then what is kept to save work is given up."""

from __future__ import annotations

import sys
import weakref
from typing import Protocol

import torch

from depthcut.model.device import free_cached_memory


class Spare(Protocol):
    """Something that keeps what it could compute again."""

    def give_up(self) -> bool:
        """Gives up a part of what is kept, for good; returns whether there was any."""
        ...


_spares: list[weakref.ref[Spare]] = []
_told: weakref.WeakSet[object] = weakref.WeakSet()


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


def say_once(owner: object, words: str) -> None:
    """Says on standard error that memory is short; once for whoever ran out of it."""
    if owner not in _told:
        _told.add(owner)
        print(words, file=sys.stderr)
