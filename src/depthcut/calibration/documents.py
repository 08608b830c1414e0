"""From a named text to its documents, in the order in which they are to be used.

Here the kinds of text meet. Rows and topics are documents as they are. One running text is cut into passages of about
`PASSAGE_CHARACTERS` whose concatenation is the text, character for character, so that passages that follow each other
can be put together again before they are tokenised; where it is cut does not depend on order or purpose, which is what
lets evaluation recognise the passages that calibration used.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from depthcut.calibration.hub import SHUFFLE_BUFFER, read_hub
from depthcut.calibration.local import read_rows, read_text
from depthcut.calibration.source import Purpose, TextPart, TextSource
from depthcut.calibration.stdlib_text import read_topics
from depthcut.types import InputError

PASSAGE_CHARACTERS = 4000
NUM_CHECKED = 8


@dataclass(frozen=True)
class Document:
    """A text and its 0-based place in the source; after a shuffle by the hub, its place in that order."""

    index: int
    text: str


def check_source(source: TextSource, purpose: Purpose = "calibration") -> None:
    """Opens every text and reads its first rows, without model and tokenizer; a hub set's first rows are downloaded.

    Raises:
        InputError: a text is missing, unreadable, empty or not text, or has no such split or column; or evaluation is
            to use text that the model writes.
    """
    if source.has_self and purpose == "evaluation":
        raise InputError("`self` is text that the model writes and says little about it: name another evaluation text")
    for part in source.parts:
        if part.kind == "self":
            continue
        texts = _texts(part, purpose, shuffle_seed=None)
        first = list(islice(texts, NUM_CHECKED))
        if not any(text.strip() for text in chain(first, texts)):
            raise InputError(f"{part.name} is empty: name a text with words in it")


def open_documents(part: TextPart, purpose: Purpose, seed: int) -> Iterator[Document]:
    """Yields the documents of a text in the order asked for; blank rows are left out unless they are lines of a text.

    Shuffling is over all documents of a file (which is then held in memory), and within a buffer for the hub.
    """
    shuffle = part.order_for(purpose) == "shuffle"
    # Lines have to arrive in order to make a text; their passages are shuffled afterwards.
    hub_shuffles = shuffle and part.kind == "hub" and not part.running
    texts = _texts(part, purpose, shuffle_seed=seed if hub_shuffles else None)
    if part.running:
        texts = passages(_lines(texts) if part.join == "lines" else texts)
    documents = (Document(i, text) for i, text in enumerate(texts) if part.running or text.strip())
    if shuffle and not hub_shuffles:
        return _shuffled(documents, seed, within=SHUFFLE_BUFFER if part.kind == "hub" else None)
    return documents


def passages(blocks: Iterable[str]) -> Iterator[str]:
    """Cuts a text into pieces of 2 000 to 4 000 characters: after a paragraph, else a line, else a word.

    The blocks in which the text arrives have no influence on where it is cut.
    """
    rest = ""
    for block in blocks:
        rest += block
        start = 0
        while len(rest) - start >= PASSAGE_CHARACTERS:
            end = _end_of_passage(rest, start)
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def _texts(part: TextPart, purpose: Purpose, shuffle_seed: int | None) -> Iterator[str]:
    if part.kind == "stdlib":
        return read_topics()
    if part.kind == "text":
        return read_text(Path(part.location))
    if part.kind == "rows":
        return read_rows(Path(part.location), part.column)
    return read_hub(
        part.location,
        config=part.config,
        split=part.split_for(purpose),
        column=part.column,
        revision=part.revision,
        shuffle_seed=shuffle_seed,
    )


def _lines(rows: Iterable[str]) -> Iterator[str]:
    """Blocks whose concatenation is the rows joined with a blank line, as in the published WikiText numbers."""
    for i, row in enumerate(rows):
        yield row if i == 0 else "\n\n" + row


def _end_of_passage(text: str, start: int) -> int:
    limit = start + PASSAGE_CHARACTERS
    for separator in ("\n\n", "\n", " "):
        at = text.rfind(separator, start + PASSAGE_CHARACTERS // 2, limit)
        if at >= 0:
            return at + len(separator)
    return limit


def _shuffled(documents: Iterator[Document], seed: int, within: int | None) -> Iterator[Document]:
    """Shuffles blocks of `within` documents, or all of them."""
    generator = random.Random(seed)
    while block := list(islice(documents, within)):
        generator.shuffle(block)
        yield from block
