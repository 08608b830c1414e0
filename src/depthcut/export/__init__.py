"""Formats in which a pruned model is written, one file each. Each verifies what it wrote, in a fresh process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from depthcut.model.heads import GIVES, head_of
from depthcut.registry import Registry
from depthcut.types import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class VerificationError(RuntimeError):
    """What was written is not the model in memory."""


class Export(Protocol):
    """One format.

    Attributes:
        note: what a user of the result should know beside that it was written, in a sentence; empty where nothing.
        heads: what models that it holds may end in; left out, they predict tokens.
    """

    note: ClassVar[str]

    def check(self, config: PreTrainedConfig) -> None:
        """Raises InputError where the format cannot hold a model of this configuration; needs no weights."""
        ...

    def write(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        """Writes a model into an existing folder."""
        ...

    def verify(self, folder: Path, model: PreTrainedModel, input_ids: torch.Tensor) -> None:
        """Raises VerificationError where what was written is not the model, judged in a fresh process."""
        ...


def check_form(name: str, exporter: Export, config: PreTrainedConfig) -> None:
    """Raises InputError where a format cannot hold a model of a configuration; needs no weights."""
    head = head_of(config)
    if head not in getattr(exporter, "heads", ("tokens",)):
        raise InputError(
            f"the format {name} holds models that predict tokens, and this one {GIVES[head]}; use hf, int8 or nf4"
        )
    exporter.check(config)


EXPORTS: Registry[Export] = Registry("export format", "depthcut.export", "depthcut.exports")
