"""What readers of model files raise, as one sentence; where an entry of config.json is the cause, it is named.

Validators of configurations and readers of tokenizers raise whatever they like, down to bare exceptions, so that no
list of types holds. What is raised in our own code is a fault of ours and stays one, and so does a machine that has run
out of something.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from depthcut.gguf.quick_reader import quick_reading
from depthcut.model.checkpoint import read_config, shown
from depthcut.process.faults import resource_error
from depthcut.types import InputError

SECONDS_TO_SEARCH = 4.0
"""Processor time that finding the entry that is to blame may take."""


@contextmanager
def reading(name: str, what: str) -> Iterator[None]:
    """While open, a reader that fails ends in one sentence, and says nothing itself.

    Raises:
        InputError: what is read is damaged.
    """
    try:
        with quietly(), quick_reading():
            yield
    except InputError:
        raise
    except Exception as error:
        if is_ours(error) or resource_error(error) is not None:
            raise
        raise InputError(f"cannot read the {what} of {name}: {reason_of(error)}") from error


@contextmanager
def reading_entries(folder: Path, read: Callable[[Path], object]) -> Iterator[None]:
    """The same for the configuration of a directory, with the entry that is to blame.

    Args:
        read: reads the configuration of a directory, as what is done while this is open does.
    """
    try:
        with reading(str(folder), "configuration"):
            yield
    except InputError as error:
        if error.__cause__ is None:
            raise
        reason = reason_of(error.__cause__)
        with quietly():
            guilty = _guilty_entry(folder, read, reason)
        if guilty is None:
            raise
        key, value = guilty
        raise InputError(
            f"{folder / 'config.json'}: {key} is {shown(value)}, which cannot be read ({reason}); mend it or download "
            "it again"
        ) from error


@contextmanager
def quietly() -> Iterator[None]:
    """While open, transformers and accelerate neither warn nor show progress bars."""
    level = transformers_logging.get_verbosity()
    of_accelerate = logging.getLogger("accelerate")
    its_level = of_accelerate.level
    of_accelerate.setLevel(logging.ERROR)
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        of_accelerate.setLevel(its_level)
        if bars:
            transformers_logging.enable_progress_bar()


def is_ours(error: BaseException) -> bool:
    """Whether an exception was raised by a line of depthcut itself."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and str(last.tb_frame.f_globals.get("__name__")).partition(".")[0] == "depthcut"


def reason_of(error: BaseException) -> str:
    """What an exception says, in one line."""
    text = " ".join(str(error).strip().split("\n\n")[0].split())
    if not text or isinstance(error, LookupError):
        return f"{type(error).__name__}: {text}".removesuffix(": ")
    return text if len(text) <= 300 else text[:297] + "..."


def _guilty_entry(folder: Path, read: Callable[[Path], object], reason: str) -> tuple[str, Any] | None:
    """The entry without which a configuration can be read, as dotted name and value; None where no single one is."""
    ends = time.process_time() + SECONDS_TO_SEARCH

    def reads(entries: Mapping[str, Any]) -> bool:
        with tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / "config.json").write_text(json.dumps(entries), encoding="utf-8")
            try:
                read(Path(scratch))
            except Exception:
                return False
        return True

    def search(entries: Mapping[str, Any], reads: Callable[[Mapping[str, Any]], bool]) -> tuple[str, Any] | None:
        def is_named(key: str) -> bool:
            return key in reason or str(entries[key]) in reason

        for key in sorted(entries.keys() - {"model_type"}, key=lambda key: (not is_named(key), key)):
            if time.process_time() > ends:
                return None
            if reads({name: value for name, value in entries.items() if name != key}):
                value = entries[key]
                inner = None
                if isinstance(value, dict):
                    inner = search(value, lambda changed, key=key: reads({**entries, key: changed}))  # type: ignore[misc]
                return (f"{key}.{inner[0]}", inner[1]) if inner else (key, value)
        return None

    return search(read_config(folder), reads)
