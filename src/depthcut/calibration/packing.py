"""Packs the documents of a SOURCE into sequences of token ids of one length, with no pads.

Documents follow each other with the tokenizer's EOS id between; passages of one text that follow each other are put
together first and tokenised as one, so that the ids are those of the whole text. Nothing is tokenised beyond the last
document that is needed. A tokenizer that opens every sequence with BOS (Gemma, Llama) gets it at the start of every
sample, in place of one token of text; published protocols for such models differ in whether they do so.

Several texts are mixed sample by sample, not document by document: every sample is of one text, every text is packed
just as it would be alone, and the first few samples are a fair mix.
"""

from __future__ import annotations

import platform
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from depthcut.calibration.documents import Document, open_documents
from depthcut.calibration.samples import Samples, text_digests
from depthcut.calibration.source import Purpose, TextPart, TextSource
from depthcut.types import InputError

# Tokens that a passage may have fewer after a passage than alone: the seam can merge white space on both sides.
SEAM_TOKENS = 4


@dataclass
class Taken:
    """The tokens taken from one text so far.

    Attributes:
        ids: int64 token ids.
        indices: places of the documents that gave them, in the order of use.
        num_excluded: documents passed over because they are in the other text.
    """

    part: TextPart
    ids: array[int] = field(default_factory=partial(array, "q"))
    indices: list[int] = field(default_factory=list)
    digests: set[str] = field(default_factory=set)
    num_excluded: int = 0

    def allowed(self, documents: Iterable[Document], exclude: frozenset[str]) -> Iterator[Document]:
        """Passes on the documents that share nothing with `exclude`, and counts the others."""
        for document in documents:
            if exclude and not exclude.isdisjoint(text_digests(document.text)):
                self.num_excluded += 1
            else:
                yield document

    def add(self, ids: list[int], documents: list[Document]) -> None:
        self.ids.extend(ids)
        for document in documents:
            self.indices.append(document.index)
            self.digests |= text_digests(document.text)


def sample_text(
    source: TextSource,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_samples: int,
    length: int,
    seed: int,
    purpose: Purpose,
    exclude: frozenset[str] = frozenset(),
) -> Samples:
    """Packs documents into exactly `num_samples` x `length` token ids.

    The same arguments give the same ids. Calibration shuffles the documents unless the source says `order=first`,
    evaluation takes them from the start. Of several texts each gives the same number of samples as far as it can.

    Args:
        exclude: digests of text that may not be used: a document that shares one is left out. Give evaluation the
            `document_digests` of the calibration samples, and the two are disjoint even on one source.

    Raises:
        InputError: there is too little text, or a text cannot be read.
    """
    if source.has_self:
        raise InputError(
            "`self` is text that the model writes: for calibration call sample_self, for evaluation name another text"
        )
    if num_samples < len(source.parts) or length < 2:
        raise InputError(
            f"{num_samples} samples of {length} token ids cannot be made of {source.text}: "
            f"ask for at least {len(source.parts)} samples and 2 token ids"
        )
    opening = opening_ids(tokenizer)
    payload = length - len(opening)

    def take(part: TextPart, num_part_samples: int) -> Taken:
        return _take(part, tokenizer, num_part_samples * payload, purpose, seed, exclude)

    taken, given = _share_out(source.parts, num_samples, payload, take)
    _require_enough(taken, given, num_samples, length, payload)

    rows = mixed([_rows(text, count, payload) for text, count in zip(taken, given, strict=True)])
    input_ids = torch.cat([torch.tensor(opening, dtype=torch.int64).expand(num_samples, -1), rows], dim=1)
    return Samples.packed(
        input_ids,
        source=source.text,
        detail="; ".join(_describe(text, purpose, seed) for text in taken),
        seed=seed,
        digests=frozenset().union(*(text.digests for text in taken)),
    )


def _share_out(
    parts: tuple[TextPart, ...], num_samples: int, payload: int, take: Callable[[TextPart, int], Taken]
) -> tuple[list[Taken], list[int]]:
    """Takes equally many samples from every text; those that are long enough share what the others lack.

    Returns:
        What was taken from every text, and how many samples each gives; in sum fewer than asked for where all of them
        together are too short, or one is shorter than a sample.
    """
    quotas = _evenly(num_samples, len(parts))
    taken = [take(part, quota) for part, quota in zip(parts, quotas, strict=True)]
    longer = list(range(len(parts)))
    while True:
        given = [min(quota, len(text.ids) // payload) for text, quota in zip(taken, quotas, strict=True)]
        missing = num_samples - sum(given)
        longer = [i for i in longer if given[i] == quotas[i]]
        if missing == 0 or not longer or 0 in given:
            return taken, given
        quotas = given
        for i, more in zip(longer, _evenly(missing, len(longer)), strict=True):
            quotas[i] += more
            taken[i] = take(parts[i], quotas[i])


def _evenly(total: int, num_shares: int) -> list[int]:
    return [total // num_shares + (i < total % num_shares) for i in range(num_shares)]


def _take(
    part: TextPart,
    tokenizer: PreTrainedTokenizerBase,
    num_tokens: int,
    purpose: Purpose,
    seed: int,
    exclude: frozenset[str],
) -> Taken:
    """Takes at least `num_tokens` tokens from one text, or all it has."""
    taken = Taken(part)
    documents = taken.allowed(open_documents(part, purpose, seed), exclude)
    for run in _runs(documents, part.running):
        if taken.ids and tokenizer.eos_token_id is not None:
            taken.ids.append(tokenizer.eos_token_id)
        if len(taken.ids) < num_tokens:
            taken.add(*_tokenise_run(run, tokenizer, num_tokens - len(taken.ids)))
        # Asking for the next run would read this one to its end.
        if len(taken.ids) >= num_tokens:
            break
    return taken


def _runs(documents: Iterable[Document], running: bool) -> Iterator[Iterator[Document]]:
    """Groups passages that follow each other in the text; documents that are no passages stay alone."""

    def key(numbered: tuple[int, Document]) -> int:
        place, document = numbered
        return document.index - place if running else place

    for _, group in groupby(enumerate(documents), key):
        yield (document for _, document in group)


def _tokenise_run(
    run: Iterator[Document], tokenizer: PreTrainedTokenizerBase, num_tokens: int
) -> tuple[list[int], list[Document]]:
    """Tokenises documents as one text, until there are `num_tokens`: the ids, and the documents they come from.

    Where the text goes on, one passage more is tokenised along and its ids left out: what follows a word can change
    how its end is tokenised.
    """
    used: list[Document] = []
    alone: list[int] = []
    num_surely = 0
    for document in run:
        if num_surely >= num_tokens:
            ids = _encode(tokenizer, "".join(passage.text for passage in (*used, document)))
            if len(ids) >= num_tokens:
                return ids[:num_tokens], used
        used.append(document)
        alone = _encode(tokenizer, document.text)
        num_surely += len(alone) - SEAM_TOKENS
    if len(used) > 1:
        return _encode(tokenizer, "".join(passage.text for passage in used)), used
    return alone, used


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # Not verbose: text longer than the model's context is no mistake here.
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def opening_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """BOS where the tokenizer opens every sequence with it by itself, else nothing."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


def _rows(taken: Taken, num_samples: int, payload: int) -> Tensor:
    return torch.tensor(taken.ids[: num_samples * payload], dtype=torch.int64).view(num_samples, payload)


def mixed(parts: Sequence[Tensor]) -> Tensor:
    """Spreads the rows of every part evenly over the whole, in their order: (all rows, length)."""
    places = [((row + 0.5) / len(rows), part, row) for part, rows in enumerate(parts) for row in range(len(rows))]
    return torch.stack([parts[part][row] for _, part, row in sorted(places)])


def join(source: str, parts: Sequence[Samples]) -> Samples:
    """Samples of several origins as one, spread evenly over the whole.

    Args:
        source: what names all of them.
    """
    return Samples.packed(
        mixed([samples.input_ids for samples in parts]),
        source=source,
        detail="; ".join(samples.description.detail for samples in parts),
        seed=parts[0].description.seed,
        digests=frozenset().union(*(samples.document_digests for samples in parts)),
    )


def _require_enough(taken: list[Taken], given: list[int], num_samples: int, length: int, payload: int) -> None:
    for text, count in zip(taken, given, strict=True):
        if count == 0:
            raise InputError(
                f"{text.part.name} is shorter than one sample: it holds {len(text.ids)} tokens{_left_out(text)}, and "
                f"a sample takes {payload}; ask for shorter samples or name a longer text"
            )
    if sum(given) < num_samples:
        held = " and ".join(f"{text.part.name} holds {len(text.ids)} tokens{_left_out(text)}" for text in taken)
        raise InputError(
            f"{held}, but {num_samples} samples of {length} token ids take {num_samples * payload}: "
            f"ask for at most {sum(given)} samples, for shorter ones, or name more text"
        )


def _left_out(taken: Taken) -> str:
    return f" ({taken.num_excluded} documents left out because the other text holds them)" if taken.num_excluded else ""


def _describe(taken: Taken, purpose: Purpose, seed: int) -> str:
    part = taken.part
    words = [part.location or part.name]
    if part.kind == "stdlib":
        words = [f"topics of pydoc, Python {platform.python_version()}"]
    if part.kind == "hub":
        words += [f"config {part.config}"] if part.config else []
        words += [f"revision {part.revision}"] if part.revision else []
        words += [f"split {part.split_for(purpose)}"]
    if part.kind in ("hub", "rows"):
        words += [f"column {part.column}"]
    noun = "passages" if part.running else "documents"
    if part.order_for(purpose) == "shuffle":
        words += [f"{len(taken.indices)} {noun} shuffled with seed {seed}"]
    else:
        words += [f"{noun} {taken.indices[0]}-{taken.indices[-1]} in order"]
    if taken.num_excluded:
        words += [f"{taken.num_excluded} left out because the other text holds them"]
    return ", ".join(words)
