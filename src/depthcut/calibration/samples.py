"""Token ids that a stage works on, what they were made from, and the check that two sets of them are disjoint.

Text is recognised by digests of whole documents and of their longer lines, each with white space collapsed: so it is
found again when another file, or another way of cutting the same file, holds it. Text that was rewrapped or edited is
not found.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from depthcut.types import InputError, TextDescription

# Shorter lines are headings and phrases that unrelated documents share.
LINE_CHARACTERS = 40


@dataclass(frozen=True, eq=False)
class Choices:
    """Which sequences belong to which multiple-choice question: one sequence an answer, a question's answers adjacent.

    Attributes:
        scored: bool, num_samples x length; where the token that follows belongs to the answer.
        question: int64, (num_samples,), rising; which question a sequence is of.
        right: bool, (num_samples,); true once a question.
    """

    scored: Tensor
    question: Tensor
    right: Tensor

    def __getitem__(self, rows: slice) -> Choices:
        return Choices(self.scored[rows], self.question[rows], self.right[rows])

    @property
    def rows(self) -> list[slice]:
        """The sequences of each question."""
        ends = torch.unique_consecutive(self.question, return_counts=True)[1].cumsum(dim=0).tolist()
        return [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]


@dataclass(frozen=True, eq=False)
class Samples:
    """Sequences of token ids.

    Attributes:
        input_ids: int64, num_samples x length.
        attention_mask: int64, same shape; 1 = token, 0 = pad.
        document_digests: `text_digests` of every document that gave tokens.
        choices: None where the sequences are no answers to questions.
    """

    input_ids: Tensor
    attention_mask: Tensor
    description: TextDescription
    document_digests: frozenset[str]
    choices: Choices | None = None

    @classmethod
    def packed(cls, input_ids: Tensor, *, source: str, detail: str, seed: int, digests: frozenset[str]) -> Samples:
        """Samples without pads, with their description."""
        num_samples, length = input_ids.shape
        description = TextDescription(
            source=source,
            detail=detail,
            num_samples=num_samples,
            length=length,
            seed=seed,
            digest=token_digest(input_ids),
        )
        return cls(input_ids, torch.ones_like(input_ids), description, digests)

    def split(self, num_first: int) -> tuple[Samples, Samples]:
        """The first sequences and the rest, each described as a part; questions stay whole."""
        if self.choices is not None:
            num_first = int((self.choices.question < self.choices.question[num_first]).sum())
        parts = []
        for rows, name in ((slice(None, num_first), "first"), (slice(num_first, None), "last")):
            ids = self.input_ids[rows]
            update = {"detail": f"{name} {len(ids)} sequences of: {self.description.detail}", "num_samples": len(ids)}
            description = self.description.model_copy(update=update | {"digest": token_digest(ids)})
            choices = None if self.choices is None else self.choices[rows]
            parts.append(Samples(ids, self.attention_mask[rows], description, self.document_digests, choices))
        return parts[0], parts[1]

    def excerpts(self, fraction: float) -> Samples:
        """A share of the tokens in sequences of the same length: the starts of all sequences, joined in their order.

        Samples with pads are cut to their first sequences instead, and questions stay whole.
        """
        num_samples, length = self.input_ids.shape
        count = max(1, round(fraction * num_samples))
        if self.choices is not None:
            count = int((self.choices.question <= self.choices.question[count - 1]).sum())
        ids, mask = self.input_ids[:count], self.attention_mask[:count]
        if self.choices is None and bool(self.attention_mask.all()):
            piece = -(-count * length // num_samples)
            ids = self.input_ids[:, :piece].reshape(-1)[: count * length].view(count, length)
            mask = torch.ones_like(ids)
        update = {"detail": f"excerpts of: {self.description.detail}", "num_samples": count}
        description = self.description.model_copy(update=update | {"digest": token_digest(ids)})
        choices = None if self.choices is None else self.choices[:count]
        return Samples(ids, mask, description, self.document_digests, choices)


def token_digest(input_ids: Tensor) -> str:
    """sha256 of the shape and the ids as little-endian int64."""
    values = input_ids.to("cpu", torch.int64).contiguous().numpy().astype("<i8", copy=False)
    return hashlib.sha256(repr(tuple(values.shape)).encode() + values.tobytes()).hexdigest()


def text_digests(text: str) -> frozenset[str]:
    """sha256 of a document and of its lines of at least `LINE_CHARACTERS`, white space collapsed; none for a blank."""
    whole = " ".join(text.split())
    lines = (" ".join(line.split()) for line in text.splitlines())
    passages = {whole, *(line for line in lines if len(line) >= LINE_CHARACTERS)} - {""}
    return frozenset(hashlib.sha256(passage.encode()).hexdigest() for passage in passages)


def require_disjoint(calibration: Samples, evaluation: Samples) -> None:
    """Raises InputError when both were made from a common document or line, or hold an identical sequence."""
    num_texts = len(calibration.document_digests & evaluation.document_digests)
    num_sequences = len(_sequences(calibration) & _sequences(evaluation))
    if num_texts or num_sequences:
        raise InputError(
            f"calibration text ({_named(calibration)}) and evaluation text ({_named(evaluation)}) overlap: "
            f"{num_texts} documents or lines and {num_sequences} sequences are in both, and a model is not judged on "
            "the text it was calibrated on; name another text or another split for one of them"
        )


def _sequences(samples: Samples) -> set[bytes]:
    return {row.numpy().tobytes() for row in samples.input_ids.cpu()}


def _named(samples: Samples) -> str:
    return f"{samples.description.source}: {samples.description.detail}"
