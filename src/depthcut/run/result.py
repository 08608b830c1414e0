"""What a run returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from depthcut.results import GenerationSample, Measurement, Repair
from depthcut.types import Plan, ScoreTable


@dataclass(frozen=True)
class Result:
    """What a run found and made.

    Attributes:
        scores: None where a given plan was applied.
        model: the pruned model in memory, in eval mode; it shares tensors with no other model that is still in use.
        output: where it was written, None where nothing was, or another rank writes it.
        generation: what both models wrote after the prompts of the generation probe.
        not_written: formats that were asked for and cannot hold what was found, each with the reason.
    """

    plan: Plan
    scores: ScoreTable | None
    measurements: tuple[Measurement, ...]
    repairs: tuple[Repair, ...]
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    generation: tuple[GenerationSample, ...] = ()
    output: Path | None = None
    not_written: tuple[tuple[str, str], ...] = ()
