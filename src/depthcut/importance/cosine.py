"""`cosine`: how far a unit turns the stream. For whole blocks it is ShortGPT's Block Influence."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from depthcut.importance import BLOCK_INFLUENCE, METRICS, Change, TokenMetric


@dataclass(frozen=True)
class Cosine(TokenMetric):
    """1 - cos(before, after)."""

    def at_tokens(self, change: Change) -> torch.Tensor:
        before, after = change.before, change.after
        cosine: torch.Tensor = torch.linalg.vecdot(before.values, after.values) / (before.l2 * after.l2)
        return 1 - cosine.clamp(-1, 1)


_SUMMARY = "1 - cos(before, after), mean over tokens"
METRICS.register("cosine", Cosine, summary=_SUMMARY, source="Deeper Look, arXiv 2407.16286, section 3")
METRICS.register(BLOCK_INFLUENCE, Cosine, summary=_SUMMARY, source="ShortGPT, arXiv 2403.03853, section 3.1")
