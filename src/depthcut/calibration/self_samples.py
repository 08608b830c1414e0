"""Sequences that the model writes itself: calibration that needs no data at all, many sequences at once with a cache.

Sequences take turns in how they open, so that the text is of several kinds and the first few are a fair mix:

- with the token that opens documents or stands between them, as packed text does;
- with a word of the vocabulary behind it, drawn at random, which takes the model to subjects that it seldom begins with
  (after LLM-QAT, arXiv 2305.17888);
- where the tokenizer has a chat template, with what stands before a user's words (Magpie, arXiv 2406.08464), so that
  the model writes the question and then the answer.

Plain sampling at temperature 1 from the whole vocabulary, whatever the model's own generation settings are, since those
sharpen the distribution that is to be kept: text at 0.7 repairs less (docs/log.md). A sequence does not end at EOS:
what the model writes after it is a new document, as in packed text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from depthcut.calibration.samples import Samples, token_digest
from depthcut.model.generation import generating_by
from depthcut.types import InputError

BATCH_SIZE = 64
"""Sequences written together, where memory allows it."""

ANY_WORDS = "depthcut"
"""What a chat template is tried with."""


def sample_self(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_samples: int,
    length: int,
    seed: int,
    batch_size: int = BATCH_SIZE,
    known: Sequence[Tensor] = (),
    keep: Callable[[Tensor], None] = lambda _: None,
    advance: Callable[[int], None] = lambda _: None,
) -> Samples:
    """Writes `num_samples` sequences of `length` token ids, openings included.

    Every sequence has random numbers of its own, so that fewer samples are the first of more, but for the rounding of
    larger batches: the same arguments give the same ids on the same device, dtype and libraries. No other random
    numbers are drawn, and the model's generation settings are restored on exit. The model should be in eval mode. Costs
    `length` - 1 forward passes of one token for every `batch_size` sequences.

    Args:
        batch_size: sequences written together.
        known: the first batches of these sequences, where an earlier process has written them.
        keep: called with the ids of every other batch once it is written.
        advance: called with the number of tokens that were just written.

    Raises:
        InputError: fewer than 1 sample or 2 token ids are asked for, or the model has neither BOS nor EOS.
    """
    if num_samples < 1 or length < 2:
        raise InputError(f"{num_samples} samples of {length} token ids: ask for at least 1 sample and 2 token ids")
    openings = openings_of(model, tokenizer)
    batches = list(known)
    for start in range(sum(map(len, known)), num_samples, batch_size):
        places = range(start, min(start + batch_size, num_samples))
        batches.append(_write(model, openings, places, length, seed, advance))
        keep(batches[-1])
    input_ids = torch.cat(batches)
    return Samples.packed(
        input_ids,
        source="self",
        detail=f"written by the model from {openings.described} with seed {seed}",
        seed=seed,
        digests=frozenset(token_digest(row) for row in input_ids),
    )


class Openings:
    """How sequences begin.

    Args:
        first: the token that opens documents.
        words: tokens of whole words.
        user: ids of what stands before a user's words; empty where there is no chat template.

    Attributes:
        never: tokens that are not drawn: what stands for no text, whose embedding is often nothing but zeros.
    """

    def __init__(self, first: int, words: list[int], user: list[int], never: list[int]) -> None:
        self._first, self._words, self._user, self.never = first, words, user, never
        self.num_kinds = 1 + bool(words) + bool(user)

    @property
    def described(self) -> str:
        kinds = [f"token {self._first}", *(["random words"] if self._words else [])]
        return ", ".join([*kinds, *(["the chat template"] if self._user else [])])

    def of(self, place: int, seed: int) -> list[int]:
        """The ids that a sequence begins with, by its place in the text."""
        kind = place % self.num_kinds
        if kind == 1 and self._words:
            drawn = torch.randint(len(self._words), (1,), generator=_generator(place, seed))
            return [self._first, self._words[int(drawn)]]
        return self._user if kind else [self._first]


def openings_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Openings:
    """What sequences of this model can begin with.

    Raises:
        InputError: it has neither BOS nor EOS.
    """
    known: int = model.get_input_embeddings().weight.shape[0]  # type: ignore[assignment, index]
    pad, ends = tokenizer.pad_token_id, (tokenizer.bos_token_id, tokenizer.eos_token_id)
    never = [*range(len(tokenizer), known), *([] if pad is None or pad in ends else [pad])]
    return Openings(_first_token(model, tokenizer), _words(tokenizer, known), _before_a_user(tokenizer), never)


def _first_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """BOS; for families without one (Qwen) the token that stands between documents, which also opens them."""
    for token in (tokenizer.bos_token_id, model.config.get_text_config().bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise InputError("the model's tokenizer has neither BOS nor EOS to start from: name another calibration text")


def _words(tokenizer: PreTrainedTokenizerBase, known: int) -> list[int]:
    """Tokens among the `known` first that are whole words of letters, as one stands at a line's start."""
    special = set(tokenizer.all_special_ids)
    texts = {
        token: str(tokenizer.decode([token])) for token in range(min(known, len(tokenizer))) if token not in special
    }
    return [token for token, text in texts.items() if text.isalpha() and text[0].isupper() and len(text) > 1]


def _before_a_user(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of what a chat template puts before a user's words; none where there is no template, or no such text."""
    if not tokenizer.chat_template:
        return []
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": ANY_WORDS}], tokenize=False)
    except Exception:  # Templates are programs of others, some of which take other messages.
        return []
    before, found, _ = str(text).partition(ANY_WORDS)
    return list(tokenizer(before, add_special_tokens=False)["input_ids"]) if found else []


def _write(
    model: PreTrainedModel,
    openings: Openings,
    places: range,
    length: int,
    seed: int,
    advance: Callable[[int], None],
) -> Tensor:
    """Writes the sequences at some places of the text together: int64, (places, length), on the CPU."""
    forced = torch.full((len(places), length), -1)
    for row, place in enumerate(places):
        opening = torch.tensor(openings.of(place, seed)[:length])
        forced[row, : len(opening)] = opening
    draws = torch.stack([torch.rand(length, generator=_generator(place, seed)) for place in places])
    first = forced[:, :1].to(model.device)
    turns = _Turns(forced, draws, openings.never, advance, model.device)
    with generating_by(model, GenerationConfig()):
        written: Tensor = model.generate(  # type: ignore[operator]
            first,
            attention_mask=torch.ones_like(first),
            do_sample=False,
            max_new_tokens=length - 1,
            logits_processor=[turns],
        )
    return written.cpu()


def _generator(place: int, seed: int) -> torch.Generator:
    """The random numbers of one sequence."""
    return torch.Generator().manual_seed(seed * 1_000_003 + place)


class _Turns(LogitsProcessor):
    """Draws the next token of every sequence by its own numbers, or takes it from the opening.

    Args:
        forced: (sequences, length) ids, -1 where the model writes.
        draws: the same shape, in [0, 1).
        never: ids that are not drawn.
        advance: called with the number of tokens of every step.
    """

    def __init__(
        self,
        forced: Tensor,
        draws: Tensor,
        never: list[int],
        advance: Callable[[int], None],
        device: torch.device,
    ) -> None:
        self._forced, self._draws = forced.to(device), draws.to(device)
        self._never, self._advance = never, advance

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        at = input_ids.shape[1]
        scores = scores.float().clone()
        scores[:, self._never] = float("-inf")
        sums = scores.softmax(dim=-1).cumsum(dim=-1)
        # Where rounding leaves the sum below 1, what is drawn is within it all the same.
        drawn = torch.searchsorted(sums, self._draws[:, at, None] * sums[:, -1:], right=True).flatten()
        given = self._forced[:, at]
        drawn = torch.where(given >= 0, given, drawn.clamp(max=scores.shape[-1] - 1))
        self._advance(len(input_ids))
        return torch.full_like(scores, float("-inf")).scatter_(1, drawn[:, None], 0.0)
