"""What a SOURCE of text means: `NAME_OR_PATH_OR_HUBID[,key=value...]`, several of them joined with `+`.

This file only reads the words; nothing is opened here but the question whether a file of that name exists. What the
user leaves out depends on the purpose: calibration shuffles the training split, evaluation reads another split from
its start. A new built-in hub set is one row of `BUILT_IN`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from depthcut.registry import Setting, split_settings, unknown_name
from depthcut.types import InputError

Purpose = Literal["calibration", "evaluation"]
SourceKind = Literal["stdlib", "self", "text", "rows", "hub"]
Join = Literal["eos", "lines"]
DocumentOrder = Literal["shuffle", "first"]

ROW_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
SUFFIXES = (".txt", *ROW_SUFFIXES)
KEYS: dict[SourceKind, tuple[str, ...]] = {
    "hub": ("config", "split", "column", "revision", "join", "order"),
    "rows": ("column", "join", "order"),
    "text": ("order",),
    "stdlib": ("order",),
    "self": (),
}
MEANINGS = {
    "config": "which of the data set's configurations",
    "split": "which of its splits, for every use; by default one to decide by and another to measure on",
    "column": "which column of a row is the text",
    "revision": "commit, tag or branch of the data set",
    "join": "eos makes every row a document, lines makes all rows one running text with blank lines between",
    "order": "shuffle, or first: from the start; by default text that decides is shuffled, text that measures is not",
}
CHOICES = {"join": ("eos", "lines"), "order": ("shuffle", "first")}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Endings that say "a file" where nothing of that name exists, so that data/text.csv is not looked for on the hub.
_OTHER_FILE_ENDING = re.compile(r"\.(json|csv|tsv|md|gz|zst|bz2|xz|zip|arrow|html?|pdf)$", re.IGNORECASE)


@dataclass(frozen=True)
class TextPart:
    """One named text.

    Attributes:
        name: as the user wrote it.
        kind: `text` is a file that is one running text, `rows` a file of one document a row.
        location: path of a file, or id of a hub data set.
        calibration_split: split that calibration reads; the same as `evaluation_split` when the user named one.
        join: `eos` makes every row a document, `lines` makes all rows one running text with blank lines between.
        order: None is `shuffle` for calibration and `first` for evaluation.
        summary: what a built-in text is, for people.
    """

    name: str
    kind: SourceKind
    location: str = ""
    config: str | None = None
    calibration_split: str = "train"
    evaluation_split: str = "test"
    column: str = "text"
    revision: str | None = None
    join: Join = "eos"
    order: DocumentOrder | None = None
    summary: str = field(default="", compare=False)

    @property
    def running(self) -> bool:
        """Whether the documents are passages of one text, so that consecutive ones belong together."""
        return self.kind == "text" or self.join == "lines"

    def split_for(self, purpose: Purpose) -> str:
        return self.calibration_split if purpose == "calibration" else self.evaluation_split

    def order_for(self, purpose: Purpose) -> DocumentOrder:
        return self.order or ("shuffle" if purpose == "calibration" else "first")


@dataclass(frozen=True)
class TextSource:
    """A SOURCE: what was written, and the texts it names."""

    text: str
    parts: tuple[TextPart, ...]

    @property
    def has_self(self) -> bool:
        """Whether the model itself has to write the text or a part of it: use `sample_self`."""
        return any(part.kind == "self" for part in self.parts)

    @property
    def read(self) -> TextSource | None:
        """The parts that are read; None where the model writes all of it."""
        parts = tuple(part for part in self.parts if part.kind != "self")
        return TextSource("+".join(part.name for part in parts), parts) if parts else None

    def num_written(self, num_samples: int) -> int:
        """How many of so many samples the model writes: its share."""
        return -(-num_samples // len(self.parts)) if self.has_self else 0


BUILT_IN = {
    part.name: part
    for part in (
        TextPart("stdlib", "stdlib", summary="Python's reference, which every Python carries; English, no download"),
        TextPart("self", "self", summary="sequences that the model writes itself, of several kinds; no data at all"),
        TextPart(
            "wikitext",
            "hub",
            "Salesforce/wikitext",
            config="wikitext-2-raw-v1",
            join="lines",
            summary="WikiText-2 raw: calibration reads its train split, evaluation its test split",
        ),
        TextPart(
            "c4",
            "hub",
            "allenai/c4",
            config="en",
            evaluation_split="validation",
            summary="English C4, streamed: calibration reads its train split, evaluation its validation split",
        ),
    )
}


def parse_source(text: str) -> TextSource:
    """Reads a SOURCE.

    A string that is, as a whole, the name of an existing file means that file, whatever signs are in it.

    Raises:
        InputError: an unknown name, key or value, or parts that do not go together.
    """
    if not text.strip():
        raise InputError(f"no text was named: name {_what_is_allowed()}")
    written = [text] if _found(text) == "file" else text.split("+")
    parts = tuple(_parse_part(part.strip()) for part in written)
    for i, part in enumerate(parts):
        if part in parts[:i]:
            raise InputError(f"{text!r} names {part.name!r} twice: name every text once")
    return TextSource(text, parts)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The known names nearest to `given` as an ending for a message, empty where none is near."""
    nearest = difflib.get_close_matches(given, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(nearest)}?" if nearest else ""


def _parse_part(text: str) -> TextPart:
    if _found(text) == "file":
        return _named(text)
    if not text:
        raise InputError(f"nothing stands before or after a `+`: name {_what_is_allowed()}")
    name, given = split_settings(text)
    part = _named(name)
    for key, value in given.items():
        if key not in KEYS[part.kind]:
            if not KEYS[part.kind]:
                raise InputError(f"the text {name} takes no settings; leave {key} out")
            raise InputError(unknown_name(f"setting of {name}", key, list(KEYS[part.kind])))
        if not value or value not in CHOICES.get(key, (value,)):
            allowed = " or ".join(CHOICES[key]) if key in CHOICES else "a word"
            raise InputError(f"{key}={value} in {text!r} is unknown: {key} is {allowed}")
    fields: dict[str, Any] = {key: value for key, value in given.items() if key != "split"}
    if "split" in given:
        fields |= {"calibration_split": given["split"], "evaluation_split": given["split"]}
    return replace(part, **fields)


def text_settings(part: TextPart) -> dict[str, Setting]:
    """What may be set of a text, by name."""
    return {
        key: Setting(key, " or ".join(CHOICES.get(key, ("str",))), getattr(part, key, None), MEANINGS[key])
        for key in KEYS[part.kind]
    }


def _named(name: str) -> TextPart:
    if name in BUILT_IN:
        return BUILT_IN[name]
    if _found(name) == "file" or name.lower().endswith(SUFFIXES):
        lower = name.lower()
        if lower.endswith(ROW_SUFFIXES):
            return TextPart(name, "rows", _expanded(name))
        if lower.endswith(".txt"):
            return TextPart(name, "text", _expanded(name))
        raise InputError(f"{name} is a file of a kind that is not read as text: give {_list_of(SUFFIXES)}")
    if _found(name) == "directory":
        raise InputError(f"{name} is a directory: name one file ({_list_of(SUFFIXES)})")
    if name.startswith(("/", ".", "~")) or _OTHER_FILE_ENDING.search(name):
        raise InputError(f"there is no file {name}: give {_list_of(SUFFIXES)}")
    if _HUB_ID.fullmatch(name):
        return TextPart(name, "hub", name)
    raise InputError(f"unknown text {name!r}: name {_what_is_allowed()}{did_you_mean(name, BUILT_IN)}")


def _expanded(name: str) -> str:
    return str(Path(name).expanduser()) if name.startswith("~/") else name


def _found(name: str) -> Literal["file", "directory", "nothing"]:
    path = Path(_expanded(name))
    try:
        return "file" if path.is_file() else "directory" if path.is_dir() else "nothing"
    except OSError:
        # A SOURCE of many parts can be longer than any file name may be.
        return "nothing"


def _what_is_allowed() -> str:
    return f"{', '.join(BUILT_IN)}, a file ({_list_of(SUFFIXES)}) or a hub data set (org/name)"


def _list_of(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
