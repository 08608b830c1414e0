"""LoRA's settings, by default those of UIDL (Gromov et al., arXiv 2403.17887, appendix A).

The published runs train on 5000 x 16 sequences of C4, 2048 tokens each (4096 for the larger models), for hours on a
GPU; `steps` and `batch_size` make it small. Rank and rate are those of the paper's model that is most alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from transformers import PreTrainedConfig

from depthcut.model.architectures import PRUNED_PREFIX
from depthcut.repairs.training.schedule import Count, Rate, Schedule

Modules = Literal["ffn", "attn", "all"]


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's table.

    Attributes:
        hidden_size: of that model; None for the largest, and for families of which the paper has one size.
    """

    model_types: tuple[str, ...]
    hidden_size: int | None
    rank: int
    learning_rate: float


TABLE = (
    PaperRow(("llama",), 4096, 2, 3e-4),
    PaperRow(("llama",), 5120, 64, 3e-4),
    PaperRow(("llama",), None, 8, 3e-5),
    PaperRow(("mistral", "ministral"), None, 4, 3e-6),
    PaperRow(("qwen2", "qwen3"), None, 64, 3e-4),
    PaperRow(("phi3",), None, 64, 2e-4),
)
"""Llama-2 7B, 13B and 70B, Mistral-7B, Qwen, Phi-2; of the Llamas the smallest that is not smaller than the model."""

ELSEWHERE = PaperRow((), None, 64, 3e-4)
"""What most rows share; also for models narrower than `NARROW`, which have nothing in common with the paper's."""
NARROW = 2048


def find_row(config: PreTrainedConfig) -> PaperRow:
    """The row of the paper's model that is most like one of this configuration."""
    model_type = str(config.model_type).removeprefix(PRUNED_PREFIX)
    size = config.get_text_config().hidden_size
    alike = [row for row in TABLE if model_type in row.model_types and size <= (row.hidden_size or size)]
    return alike[0] if alike and size >= NARROW else ELSEWHERE


@dataclass(frozen=True)
class LoraSettings(Schedule):
    """Settings of a repair that trains LoRA.

    Attributes:
        rank: also LoRA's alpha; UIDL's for the model where left out.
        learning_rate: at its highest; UIDL's for the model where left out.
        modules: the sublayers whose linear maps are changed.
        dropout: share of an adapter's inputs that each update leaves out.
    """

    rank: Count | None = None
    learning_rate: Rate | None = None
    modules: Modules = "ffn"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05

    def rank_for(self, config: PreTrainedConfig) -> int:
        """The rank that is used on a model."""
        return self.rank or find_row(config).rank

    def rate_for(self, config: PreTrainedConfig) -> float:
        """The highest learning rate that is used on a model."""
        return self.learning_rate or find_row(config).learning_rate
