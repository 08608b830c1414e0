"""The files beside the weights: tokenizer, chat templates, generation settings, processor, sentence-transformers' own.

A source's are copied byte for byte, since whatever writes them anew spells them for its own version. Only a model that
comes without any (of a GGUF file) gets new ones, in words that transformers 4 and 5 both understand.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from depthcut.export.config_file import source_folder

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tekken.json",
    "*.model",
    "*.tiktoken",
)
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja")
MODEL_FILES = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "[0-9]_*/config.json",
    "[0-9]_*/*.safetensors",
)
OF_THIS_MACHINE = ("is_local", "local_files_only")
"""What transformers 5 writes of how a tokenizer was loaded."""


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a tokenizer with its chat templates into an existing folder: its source's files, or new ones."""
    source = source_folder(tokenizer)
    if source is not None and _found(source, TOKENIZER_FILES):
        _copy(source, folder, (*TOKENIZER_FILES, *TEMPLATE_FILES))
        return
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return
    entries = json.loads(file.read_text(encoding="utf-8"))
    for name in OF_THIS_MACHINE:
        entries.pop(name, None)
    if entries.get("tokenizer_class") == "TokenizersBackend":
        entries["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(entries.get("extra_special_tokens"), list):
        # transformers 4 takes names with tokens there, and this list under its former name, which 5 reads as well.
        entries["additional_special_tokens"] = entries.pop("extra_special_tokens")
    file.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_model_files(model: PreTrainedModel, folder: Path) -> None:
    """Copies the files about generation and inputs from a model's source, replacing those in an existing folder."""
    source = source_folder(model)
    if source is not None:
        _copy(source, folder, MODEL_FILES)


def _found(source: Path, patterns: Sequence[str]) -> list[Path]:
    return [file for pattern in patterns for file in sorted(source.glob(pattern)) if file.is_file()]


def _copy(source: Path, folder: Path, patterns: Sequence[str]) -> None:
    for file in _found(source, patterns):
        target = folder / file.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
