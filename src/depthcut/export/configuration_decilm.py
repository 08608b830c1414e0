"""Configuration of a Llama model whose blocks differ in what they hold; written beside the weights by depthcut.

`block_configs` says for every block which sublayers it has and how large they are. Its entries are read as attributes
(`config.block_configs[3].attention.no_op`), the way engines read them, and are plain JSON objects all the same. Needs
transformers alone, of any version that has Llama.
"""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig


class BlockEntry(dict[str, Any]):
    """A JSON object whose values are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def _entries(value: Any) -> Any:
    if isinstance(value, dict):
        return BlockEntry({name: _entries(inner) for name, inner in value.items()})
    return value


class DeciLMConfig(LlamaConfig):
    """The Llama configuration and `block_configs`, a list with one entry a block."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs: list[dict[str, Any]] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.block_configs = [_entries(block) for block in block_configs or []]
