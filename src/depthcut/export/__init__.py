"""Forms in which a pruned model is written: one file a form. Every one verifies what it wrote, in a fresh process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from depthcut.registry import Registry

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class VerificationError(RuntimeError):
    """What was written is not the model in memory."""


class Export(Protocol):
    """One form.

    Attributes:
        note: what a user of the result should know beside that it was written, in a sentence; empty where nothing.
    """

    note: ClassVar[str]

    def check(self, config: PreTrainedConfig) -> None:
        """Raises InputError where the form cannot hold a model of this configuration; needs no weights."""
        ...

    def write(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        """Writes a model into an existing folder."""
        ...

    def verify(self, folder: Path, model: PreTrainedModel, input_ids: torch.Tensor) -> None:
        """Raises VerificationError where what was written is not the model, judged in a fresh process."""
        ...


EXPORTS: Registry[Export] = Registry("export form", "depthcut.export", "depthcut.exports")
