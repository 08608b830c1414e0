"""A model that somebody has loaded, as a source that the stages of a run can work on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from transformers import PreTrainedModel

from depthcut.model.architectures import find_architecture
from depthcut.model.heads import check_head, head_of, head_of_model
from depthcut.model.load import ModelSource
from depthcut.model.probe import know
from depthcut.model.quantisation import quantisation
from depthcut.model.wrappers import num_blocks
from depthcut.types import Provenance

SAMPLED_VALUES = 1024


def source_of(model: PreTrainedModel) -> ModelSource:
    """What a loaded model is, for those that ask a source: its family, its configuration and where it came from.

    Raises:
        InputError: its family is not supported.
    """
    config = model.config
    if head_of(config) != head_of_model(model):
        # A configuration that was written by hand names no class, and one that was read may name another.
        config.architectures = [type(model).__name__]
    check_head(config)
    know(config)
    name = model.name_or_path or "a model in memory"
    provenance = Provenance(
        source=name,
        format="memory",
        digest=_digest(model),
        model_type=config.model_type,
        num_blocks=num_blocks(config),
        dtype=str(model.dtype).removeprefix("torch."),
        quantisation=quantisation(config),
    )
    return ModelSource(provenance, Path(name), None, config, find_architecture(config), trust_remote_code=False)


def _digest(model: PreTrainedModel) -> str:
    """sha256 over the configuration and, of every tensor, name, shape, type and its first and last values."""
    digest = hashlib.sha256(model.config.to_json_string().encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0".encode())
        values = tensor.detach().reshape(-1)
        for part in (values[:SAMPLED_VALUES], values[-SAMPLED_VALUES:]):
            digest.update(part.contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()
