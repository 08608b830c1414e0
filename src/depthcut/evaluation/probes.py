"""Prompts of the generation probe, and how what follows each of them is scored.

Multiple choice only ranks given answers; a model can keep that and no longer write. Four things show it, on prompts
that a small base model understands, since each says what is wanted by an example: does the text go round in circles,
does a chain of additions stay right, is a sentence copied, is a simple format obeyed. Prompts and scores are our own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

PromptKind = Literal["repetition", "arithmetic", "copy", "format"]

NGRAM = 4
CHAIN_STEPS = 5

MEASURES: dict[PromptKind, str] = {
    "repetition": f"share of {NGRAM}-grams seen before in the text; less is better",
    "arithmetic": "share of steps right before the first wrong one",
    "copy": "share of words right before the first wrong one",
    "format": "share of answers in the format",
}


@dataclass(frozen=True)
class Probe:
    """One prompt.

    Attributes:
        num_tokens: that are generated at most.
        score: from the text that follows to a number in [0, 1]; of repetition the tokens decide instead.
    """

    kind: PromptKind
    prompt: str
    num_tokens: int
    score: Callable[[str], float]


def repeated_share(tokens: Sequence[int]) -> float | None:
    """The share of n-grams that occur earlier in the same text, in [0, 1); None for a text shorter than one."""
    ngrams = [tuple(tokens[begin : begin + NGRAM]) for begin in range(len(tokens) - NGRAM + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else None


def chain_share(text: str, start: int, step: int) -> float:
    """How many lines `a + step = b` are right, each beginning where the one before ended, up to the first wrong one.

    Args:
        text: what follows `start + step =`.
    """
    right = 0
    for line in f"{start} + {step} ={text}".split("\n")[:CHAIN_STEPS]:
        if line.strip() != f"{start} + {step} = {start + step}":
            break
        start += step
        right += 1
    return right / CHAIN_STEPS


def copied_share(text: str, original: str) -> float:
    """How many of the original's words begin the text's first line, up to the first wrong one."""
    wanted, found = original.split(), text.partition("\n")[0].split()
    wrong = (place for place, (left, right) in enumerate(zip(wanted, found, strict=False)) if left != right)
    return next(wrong, min(len(wanted), len(found))) / len(wanted)


def obeys(text: str, pattern: str) -> float:
    """1 where the answer, which ends at the first blank line, is as a whole in the format."""
    return float(re.fullmatch(pattern, text.partition("\n\n")[0].rstrip()) is not None)


def _chain(start: int, step: int) -> Probe:
    shown = [f"{start + place * step} + {step} = {start + (place + 1) * step}" for place in range(4)]
    begin = start + 4 * step
    prompt = "\n".join([f"Start with {start} and add {step} again and again.", *shown, f"{begin} + {step} ="])
    return Probe("arithmetic", prompt, 10 * CHAIN_STEPS, lambda text: chain_share(text, begin, step))


def _copy(sentence: str) -> Probe:
    shown = (
        "Original: Seven grey boats left the harbour before the storm came.\n"
        "Copy: Seven grey boats left the harbour before the storm came.\n\n"
        "Original: Please bring the blue folder to room 14 at noon.\n"
        "Copy: Please bring the blue folder to room 14 at noon.\n\n"
    )
    prompt = f"{shown}Original: {sentence}\nCopy:"
    return Probe("copy", prompt, 24, lambda text: copied_share(text, sentence))


def _format(request: str, example: tuple[str, str], asked: str, pattern: str) -> Probe:
    prompt = f"{request}\n\nQuestion: {example[0]}\nAnswer:\n{example[1]}\n\nQuestion: {asked}\nAnswer:\n"
    return Probe("format", prompt, 32, lambda text: obeys(text, pattern))


_OPENINGS = (
    "The old lighthouse keeper climbed the stairs one last time, and",
    "Bread is made in a few simple steps. First,",
    "The history of the bicycle begins in",
    "Dear Ms Okafor, thank you for your letter about the library. We",
    "Most people do not know that the ocean floor",
    "In this report we compare three ways to heat a house. The first",
)
_ITEMS = r"- \S[^\n]*(\n- \S[^\n]*){2}"
_NUMBERED = r"1\. \S[^\n]*\n2\. \S[^\n]*\n3\. \S[^\n]*"
_RECORD = r'\{"name": "[^"\n]+", "count": \d+\}'

PROBES: tuple[Probe, ...] = (
    *(Probe("repetition", opening, 64, lambda _: 0.0) for opening in _OPENINGS),
    *(_chain(start, step) for start, step in ((2, 2), (10, 5), (4, 3), (20, 10), (7, 4), (12, 6))),
    *(
        _copy(sentence)
        for sentence in (
            "The committee will meet again on Tuesday in the small hall.",
            "Four children planted 26 apple trees behind the old school.",
            "Never store paint near a heater or an open window.",
            "Her train to Lisbon was late, so she read the whole book.",
            "A narrow wooden bridge crosses the river below the mill.",
            "Order 7315 was packed on Friday and sent to Mr Brandt.",
        )
    ),
    _format(
        "Answer with a list of three items. Begin every item with a dash.",
        ("Name three fruits.", "- apple\n- pear\n- plum"),
        "Name three animals.",
        _ITEMS,
    ),
    _format(
        "Answer with a list of three items. Begin every item with a dash.",
        ("Name three tools.", "- hammer\n- saw\n- file"),
        "Name three colours.",
        _ITEMS,
    ),
    _format(
        "Answer with three numbered lines.",
        ("How is tea made?", "1. Boil the water.\n2. Add the leaves.\n3. Wait four minutes."),
        "How is a letter sent?",
        _NUMBERED,
    ),
    _format(
        "Answer with yes or no only.",
        ("Is ice cold?", "yes"),
        "Is the sun a star?",
        "yes|no",
    ),
    _format(
        "Answer with the name and the count as JSON.",
        ("There are 4 lamps.", '{"name": "lamps", "count": 4}'),
        "There are 12 chairs.",
        _RECORD,
    ),
    _format(
        "Answer with one word in capital letters.",
        ("What colour is grass?", "GREEN"),
        "What colour is snow?",
        "[A-Z]+",
    ),
)
