"""Proves on a few tokens that the engine does what a loaded model does, before anything relies on it."""

from __future__ import annotations

import torch

from depthcut.model.heads import output_at_end
from depthcut.model.stream import DecoderStream
from depthcut.types import InputError, Unit


@torch.no_grad()
def prove(stream: DecoderStream, input_ids: torch.Tensor) -> None:
    """Compares the engine with the model's own forward pass. Costs about four forward passes.

    A full pass keeps the stream at every position. A block that is run from a position inside it must end in the kept
    stream, and one whose units are bypassed must return the stream that it was given: both bit for bit. The logits must
    be the model's own, within 1e-4.

    Args:
        input_ids: (1, length), a few tokens.

    Raises:
        InputError: the model does something that its family's description does not say.
    """
    batch = stream.prepare(input_ids)
    kept: list[torch.Tensor] = []
    final = stream.run(batch, visit=lambda unit, before, _: kept.append(before) if isinstance(unit, Unit) else None)
    kept.append(final)

    problem = None
    resumed = torch.cat([piece for _, piece in stream.logits(batch, final)], dim=1)
    if stream.head == "tokens":
        expected = stream.model(input_ids=batch.input_ids, use_cache=False).logits
    else:
        end, expected = output_at_end(stream.model, stream.head, stream.pooling, batch.input_ids)
        resumed = resumed[:, end]
    if not torch.allclose(resumed.float(), expected.float(), atol=1e-4, rtol=1e-4):
        problem = "a full forward pass"
    per_block = len(stream.architecture.branches)
    for start in range(0, len(stream.units), per_block if stream.architecture.parallel else 1):
        block_end = start - start % per_block + per_block
        entry = stream.entry(start)
        if not torch.equal(stream.run(batch, start=entry, stop=block_end, stream=kept[entry]), kept[block_end]):
            problem = problem or f"the pass resumed at {stream.units[start]}"
        absent = stream.units[start - start % per_block : block_end]
        # Given something to show the stream to, the engine runs bypassed blocks, too.
        through = stream.run(batch, absent, entry, block_end, kept[entry], visit=lambda *_: None)
        if not torch.equal(through, kept[start]):
            problem = problem or f"block {start // per_block} bypassed"
    if problem:
        raise InputError(
            f"this {stream.model.config.model_type} model cannot be run from the middle (it differs from {problem}): "
            "its blocks do more than its family's description says, so depthcut will not guess"
        )
