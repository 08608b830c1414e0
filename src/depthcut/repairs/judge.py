"""The objective of a pruned model on held-out text; it decides whether a repair is kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from transformers import PreTrainedModel

from depthcut.ablation.comparator import ComparedBatch, predicting
from depthcut.ablation.memory import reference_bytes
from depthcut.ablation.objectives import find_objective
from depthcut.calibration import Samples
from depthcut.model.stream import Batch, DecoderStream


class Judge:
    """An objective's mean over the tokens of held-out text, for models made from one dense model.

    Args:
        objective: one of `OBJECTIVES`, with settings.
        memory_budget: bytes for what the objective keeps of the dense logits; computed anew each time from the dense
            stream before the final norm where it does not fit.
    """

    def __init__(
        self, dense: DecoderStream, samples: Samples, objective: str, *, batch_size: int, memory_budget: int
    ) -> None:
        self._dense, self._samples = dense, samples
        self._objective = find_objective(objective)
        self._rows = [slice(begin, begin + batch_size) for begin in range(0, len(samples.input_ids), batch_size)]
        self._keeps = reference_bytes(samples.input_ids.numel(), dense.output_width) <= memory_budget
        self._compared: list[ComparedBatch] = []

    def batches(self, stream: DecoderStream) -> list[Batch]:
        """The text, ready to be run through a model."""
        ids, mask = self._samples.input_ids, self._samples.attention_mask
        return [stream.prepare(ids[rows], mask[rows]) for rows in self._rows]

    @torch.no_grad()
    def __call__(self, model: PreTrainedModel) -> float:
        """The objective of a model. Costs a forward pass of it, and at first one of the dense model."""
        stream = DecoderStream(model, self._dense.architecture)
        batches = self.batches(stream)
        return float(self.values(stream, batches, (stream.run(batch) for batch in batches)).mean())

    @torch.no_grad()
    def values(self, stream: DecoderStream, batches: Sequence[Batch], finals: Iterable[torch.Tensor]) -> torch.Tensor:
        """(positions,) float64, the objective at each position that counts of a model that was run already.

        Args:
            batches: of this model, from `batches`.
            finals: (sequences, length, hidden) the stream before the final norm, batch by batch.
        """
        if not self._compared:
            self._compared = [self._dense_answer(batch) for batch in self.batches(self._dense)]
        found: list[torch.Tensor] = []
        for compared, batch, final in zip(self._compared, batches, finals, strict=True):
            pieces = compared.values(self._objective, self._dense, stream, batch, final)
            found += [values for _, values in pieces]
        return torch.cat(found).cpu().double()

    def _dense_answer(self, batch: Batch) -> ComparedBatch:
        tokens = batch.token_mask
        scored = predicting(tokens) if self._objective.next_token else tokens
        return ComparedBatch(batch, self._dense.run(batch), scored, keeps_references=self._keeps)
