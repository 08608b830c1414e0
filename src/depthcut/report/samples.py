"""What the two models write after the same prompt, side by side, split where their texts part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from depthcut.results import GenerationSample

CHARACTERS_AT_MOST = 4000
"""What the page shows of one text; `generation.json` holds all of it."""


@dataclass(frozen=True)
class SampleRow:
    """What both models wrote once.

    Attributes:
        setting: how tokens were chosen.
        shared: how both texts begin.
        dense: how the dense model goes on from there.
        pruned: how the pruned model goes on from there.
        verdict: in words, for whom the marks in the texts do not show.
    """

    setting: str
    shared: str
    dense: str
    pruned: str
    verdict: str


def samples_by_prompt(samples: Sequence[GenerationSample]) -> list[tuple[str, list[SampleRow]]]:
    """Every prompt once, with what was written after it in each setting."""
    rows: dict[str, list[SampleRow]] = {}
    for sample in samples:
        rows.setdefault(sample.prompt, []).append(sample_row(sample))
    return [(_cut(prompt), written) for prompt, written in rows.items()]


def sample_row(sample: GenerationSample) -> SampleRow:
    """The texts of one sample, cut where they are long."""
    dense, pruned = _cut(sample.dense), _cut(sample.pruned)
    num_shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(dense, pruned, strict=False)))
    shared = dense[:num_shared]
    if sample.dense == sample.pruned:
        verdict = "both write the same"
    elif shared:
        verdict = f"the same for {num_shared} {'character' if num_shared == 1 else 'characters'}"
    else:
        verdict = "different from the start"
    return SampleRow(sample.setting, shared, dense[num_shared:], pruned[num_shared:], verdict)


def _cut(text: str) -> str:
    return text if len(text) <= CHARACTERS_AT_MOST else text[:CHARACTERS_AT_MOST] + " […]"
