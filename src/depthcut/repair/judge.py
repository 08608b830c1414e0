"""What a pruned model loses on held-out text: it decides what of a repair is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from transformers import PreTrainedModel

from depthcut.ablation.objectives import NEXT_TOKEN_OBJECTIVES, POSITIONS_AT_ONCE, Reference, find_objective
from depthcut.calibration import Samples
from depthcut.model.stream import Batch, DecoderStream


class Judge:
    """An objective's mean over the tokens of held-out text, for models made from one dense model.

    Args:
        objective: name of one of `OBJECTIVES`.
        memory_budget: bytes for what the objective keeps of the dense logits; computed anew each time from the dense
            stream before the final norm where it does not fit.
    """

    def __init__(
        self, dense: DecoderStream, samples: Samples, objective: str, *, batch_size: int, memory_budget: int
    ) -> None:
        self._dense, self._samples = dense, samples
        self._objective = find_objective(objective)
        self._next_token = objective in NEXT_TOKEN_OBJECTIVES
        self._rows = [slice(begin, begin + batch_size) for begin in range(0, len(samples.input_ids), batch_size)]
        vocabulary = dense.model.get_output_embeddings().weight.shape[0]
        self._keeps = samples.input_ids.numel() * vocabulary * 4 <= memory_budget
        self._references: list[Reference] = []
        self._dense_finals: list[tuple[Batch, torch.Tensor]] = []

    def batches(self, stream: DecoderStream) -> list[Batch]:
        """The text, ready to be run through a model."""
        ids, mask = self._samples.input_ids, self._samples.attention_mask
        return [stream.prepare(ids[rows], mask[rows]) for rows in self._rows]

    @torch.no_grad()
    def __call__(self, model: PreTrainedModel) -> float:
        """The objective of a model. Costs a forward pass of it, and at first one of the dense model."""
        stream = DecoderStream(model, self._dense.architecture)
        batches = self.batches(stream)
        return self.value(stream, batches, (stream.run(batch) for batch in batches))

    @torch.no_grad()
    def value(self, stream: DecoderStream, batches: Sequence[Batch], finals: Iterable[torch.Tensor]) -> float:
        """The objective of a model that was run already.

        Args:
            batches: of this model, from `batches`.
            finals: (sequences, length, hidden) the stream before the final norm, batch by batch.
        """
        total, count = torch.zeros((), dtype=torch.float64), 0
        references = self._dense_references()
        for batch, final in zip(batches, finals, strict=True):
            for logits, targets in self._counted(stream, batch, final):
                values = self._objective.at_positions(next(references), logits, targets)
                total += values.double().sum().cpu()
                count += len(values)
        return float(total / count)

    def _dense_references(self) -> Iterator[Reference]:
        if self._references:
            return iter(self._references)
        if not self._dense_finals:
            self._dense_finals = [(batch, self._dense.run(batch)) for batch in self.batches(self._dense)]
        made = (
            self._objective.reference(logits)
            for batch, final in self._dense_finals
            for logits, _ in self._counted(self._dense, batch, final)
        )
        if self._keeps:
            self._references = list(made)
            return iter(self._references)
        return made

    def _counted(
        self, stream: DecoderStream, batch: Batch, final: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Logits in float32 and following tokens where there are tokens, a few positions at a time."""
        counted = batch.token_mask
        if self._next_token:
            counted = torch.nn.functional.pad(counted[:, :-1] & counted[:, 1:], (0, 1))
        targets = torch.nn.functional.pad(batch.input_ids[:, 1:], (0, 1))
        for positions, logits in stream.logits(batch, final):
            chosen = counted[:, positions]
            found, follows = logits[chosen], targets[:, positions][chosen]
            for begin in range(0, len(found), POSITIONS_AT_ONCE):
                part = slice(begin, begin + POSITIONS_AT_ONCE)
                yield found[part].float(), follows[part]
