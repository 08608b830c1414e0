"""A tokenizer made on the spot, and text of distinct sentences."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


def _sentences(first: int, count: int) -> str:
    numbers = range(first, first + count)
    return "\n".join(f"Sentence number {i} tells of the {i * 7919 % 1009} ships in harbour." for i in numbers)


@pytest.fixture(scope="session")
def sentences() -> Callable[[int, int], str]:
    """`sentences(first, count)`: as many lines, each longer than 40 characters and found under no other number."""
    return _sentences


def _byte_pairs(**special: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(special.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Blank lines at the end of a text become one token, and two tokens where a word follows.
    tokenizer.train_from_iterator([_sentences(0, 50), *["\n\n"] * 50], trainer)
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte pairs; EOS is id 0, nothing is added by itself. Its context is short, which must not matter."""
    return PreTrainedTokenizerFast(tokenizer_object=_byte_pairs(eos="</s>"), eos_token="</s>", model_max_length=64)


@pytest.fixture(scope="session")
def bos_tokenizer() -> PreTrainedTokenizerFast:
    """Opens every sequence with BOS (id 1) by itself, as Gemma's does."""
    inner = _byte_pairs(eos="</s>", bos="<s>")
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", bos_token="<s>")


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., str]:
    """Writes JSON Lines, gzipped where the name says so, and returns the path."""

    def write(name: str, texts: list[Any], column: str = "text") -> str:
        path = tmp_path / name
        data = "".join(json.dumps({column: text}) + "\n" for text in texts).encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return str(path)

    return write
