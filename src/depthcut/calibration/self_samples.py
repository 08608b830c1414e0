"""Sequences that the model writes itself, from its BOS token on: calibration that needs no data at all.

Plain sampling at temperature 1 from the whole vocabulary, whatever the model's own generation settings are, since
those sharpen the distribution that is to be kept. A sequence does not end at EOS: what the model writes after it is a
new document, as in packed text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from depthcut.calibration.samples import Samples, token_digest
from depthcut.model.device import own_seed
from depthcut.types import InputError

# Part of what the seed means: with another batch size the same seed gives other text.
BATCH_SIZE = 8


@torch.no_grad()
def sample_self(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, num_samples: int, length: int, seed: int
) -> Samples:
    """Samples `num_samples` sequences of `length` token ids, BOS included.

    The same seed gives the same ids on the same device and dtype; the random states and
    the model's generation settings are restored on exit. The model should be in eval mode. Costs
    `length` - 1 forward passes of one token for every 8 sequences.

    Raises:
        InputError: fewer than 1 sample or 2 token ids are asked for, or the model has neither BOS nor EOS.
    """
    if num_samples < 1 or length < 2:
        raise InputError(f"{num_samples} samples of {length} token ids: ask for at least 1 sample and 2 token ids")
    first = torch.tensor([[_first_token(model, tokenizer)]], device=model.device)
    batches: list[torch.Tensor] = []
    with _plain_generation(model), own_seed():
        torch.manual_seed(seed)
        for start in range(0, num_samples, BATCH_SIZE):
            opening = first.expand(min(BATCH_SIZE, num_samples - start), 1)
            sampled = model.generate(  # type: ignore[operator]
                opening,
                attention_mask=torch.ones_like(opening),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=length - 1,
            )
            batches.append(sampled.cpu())
    input_ids = torch.cat(batches)
    return Samples.packed(
        input_ids,
        source="self",
        detail=f"sampled by the model from token {first.item()} at temperature 1 with seed {seed}",
        seed=seed,
        digests=frozenset(token_digest(row) for row in input_ids),
    )


def _first_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """BOS; for families without one (Qwen) the token that stands between documents, which also opens them."""
    for token in (tokenizer.bos_token_id, model.config.get_text_config().bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise InputError("the model's tokenizer has neither BOS nor EOS to start from: name another calibration text")


@contextmanager
def _plain_generation(model: PreTrainedModel) -> Iterator[None]:
    """Sets the model's own generation settings aside: arguments of `generate` cannot undo all of them."""
    settings = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = settings
