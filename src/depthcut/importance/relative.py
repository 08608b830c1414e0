"""`relative-l1`, `relative-l2`, `relative-magnitude`: how long what a unit adds is, beside the stream."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from depthcut.importance import METRICS, Change, TokenMetric


@dataclass(frozen=True)
class Relative(TokenMetric):
    """Length of the update over the stream's.

    Attributes:
        order: of the norm.
        to: the stream before the unit, or after it.
    """

    order: Literal[1, 2]
    to: Literal["before", "after"]

    def at_tokens(self, change: Change) -> torch.Tensor:
        stream = change.before if self.to == "before" else change.after
        return change.update.l1 / stream.l1 if self.order == 1 else change.update.l2 / stream.l2


for _name, _order, _to, _summary, _source in (
    ("relative-l1", 1, "before", "|after - before|_1 / |before|_1", "Deeper Look, arXiv 2407.16286, section 3"),
    ("relative-l2", 2, "before", "|after - before|_2 / |before|_2", "Deeper Look, arXiv 2407.16286, section 3"),
    ("relative-magnitude", 2, "after", "|after - before|_2 / |after|_2", "ShortGPT's baseline, arXiv 2403.03853"),
):
    METRICS.register(
        _name,
        partial(Relative, _order, _to),  # type: ignore[arg-type]
        summary=f"{_summary}, mean over tokens",
        source=_source,
    )
