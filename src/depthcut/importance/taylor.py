"""`taylor`: how much the loss would change, to first order, if each of a unit's weights were zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch.func import functional_call

from depthcut.ablation.comparator import following, predicting
from depthcut.calibration import Samples
from depthcut.importance import METRICS, ModelMetric, of_all
from depthcut.model.stream import DecoderStream
from depthcut.model.units import unit_parameters


@dataclass(frozen=True)
class Taylor(ModelMetric):
    """Sum of |w dL/dw|^power over a unit's weights, L the mean loss of the next token over the calibration text.

    Costs a forward and a backward pass, sequence by sequence, and in memory the blocks' gradients twice, the sum in
    float32. Known limit: in the paper's models it ranks the first and the last blocks too low, so that the paper keeps
    the first four and the last two (`--protect`).

    Attributes:
        power: of each weight's share, 1 or 2.
    """

    power: Literal[1, 2] = 1
    reads: ClassVar[Literal["gradients"]] = "gradients"

    def by_unit(self, stream: DecoderStream, samples: Samples, advance: Callable[[int], None]) -> Mapping[str, float]:
        units = unit_parameters(stream.model, stream.architecture)
        names = {id(weight): name for name, weight in stream.model.named_parameters()}
        # Leaves of their own on the same memory: whether the model's take gradients stays as it is.
        leaves = {id(w): w.detach().requires_grad_() for weights in units.values() for w in weights}
        sums = {key: torch.zeros_like(leaf, dtype=torch.float32, requires_grad=False) for key, leaf in leaves.items()}
        num_targets = int(predicting(samples.attention_mask.bool()).sum())
        for row in range(len(samples.input_ids)):
            ids = samples.input_ids[row : row + 1].to(stream.model.device)
            mask = samples.attention_mask[row : row + 1].to(stream.model.device)
            with torch.enable_grad():
                options = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
                logits = functional_call(stream.model, {names[key]: leaf for key, leaf in leaves.items()}, (), options)
                counted = predicting(mask.bool())
                loss = torch.nn.functional.cross_entropy(
                    logits.logits[counted].float(), following(ids)[counted], reduction="sum"
                )
                gradients = torch.autograd.grad(loss / num_targets, list(leaves.values()), allow_unused=True)
            for total, gradient in zip(sums.values(), gradients, strict=True):
                if gradient is not None:
                    total += gradient
            advance(3)
        return of_all(
            {
                unit: sum(float((sums[id(w)] * w.detach()).abs().pow(self.power).sum()) for w in weights)
                for unit, weights in units.items()
            }
        )


METRICS.register(
    "taylor",
    Taylor,
    summary="sum of |w dL/dw| over a unit's weights, L the loss of the calibration text",
    source="Shortened LLaMA, arXiv 2402.02834",
)
