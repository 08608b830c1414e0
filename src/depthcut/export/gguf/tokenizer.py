"""A fast tokenizer as GGUF keys: byte-level BPE (GPT-2, SmolLM, Llama 3, Qwen 2), SentencePiece BPE (Llama 2, Gemma).

llama.cpp knows a byte-level tokenizer's way of splitting text by a name (`tokenizer.ggml.pre`), which is found here
from the rules themselves; a tokenizer with rules that are not listed is refused, since a wrong name would silently give
other tokens. A SentencePiece tokenizer needs no name: its scores order the merges, and follow from their ranks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from gguf import GGUFValueType, TokenType
from transformers import PreTrainedTokenizerBase

from depthcut.gguf.container import Value
from depthcut.types import InputError

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
PUNCTUATION_AND_SPACES = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITTERS: dict[tuple[tuple[str, str | bool], ...], str] = {
    (("ByteLevel", True),): "gpt-2",
    (("Digits", True), ("ByteLevel", True)): "smollm",
    (("Split", CONTRACTIONS + r"\p{N}{1,3}" + PUNCTUATION_AND_SPACES), ("ByteLevel", False)): "llama-bpe",
    (("Split", CONTRACTIONS + r"\p{N}" + PUNCTUATION_AND_SPACES), ("ByteLevel", False)): "qwen2",
}
"""llama.cpp's name of a way of splitting, by the rules in order: every digit by itself, a regular expression, or the
one built into ByteLevel."""

WHOLE_WORDS_FIRST = frozenset({"llama-bpe"})
"""Splitters with which llama.cpp takes a word that is a token without merging (`ignore_merges`)."""

SPACE = "\u2581"
NEVER_MERGED = -1e9
"""Score of a piece that no merge makes: the last to be made."""


def tokenizer_keys(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> dict[str, Value]:
    """All `tokenizer.*` keys.

    Args:
        vocab_size: rows of the embedding; rows that no token has are filled up.

    Raises:
        InputError: llama.cpp has no such tokenizer, or it is not known which.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {"model": {}}
    model = rules["model"]
    if model.get("type") != "BPE":
        raise _unknown(f"it is of kind {model.get('type') or type(tokenizer).__name__}, not BPE")
    merges = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    tokens, types = _tokens(tokenizer, vocab_size)
    is_bytes = not model.get("byte_fallback")
    keys = _byte_level(rules, merges) if is_bytes else _sentencepiece(rules, tokens, types, merges)
    keys["tokens"] = Value.array(GGUFValueType.STRING, tokens)
    keys["token_type"] = Value.array(GGUFValueType.INT32, types)
    keys |= _special(tokenizer)
    named = {f"tokenizer.ggml.{name}": value for name, value in keys.items()}
    template = tokenizer.chat_template
    template = template.get("default") if isinstance(template, dict) else template
    return named | ({"tokenizer.chat_template": Value.of(GGUFValueType.STRING, template)} if template else {})


def _unknown(reason: str) -> InputError:
    return InputError(
        f"the tokenizer cannot be written as GGUF: {reason}; use the format hf and llama.cpp's convert_hf_to_gguf.py"
    )


def _tokens(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> tuple[list[str], list[int]]:
    """Every row's token and its type."""
    backend: Any = tokenizer.backend_tokenizer
    by_id = {index: token for token, index in backend.get_vocab(with_added_tokens=True).items()}
    if max(by_id) >= vocab_size:
        raise InputError(
            f"the tokenizer writes token {max(by_id)}, and the model knows {vocab_size} tokens; they do not belong "
            "together"
        )
    tokens, types = [], []
    added = backend.get_added_tokens_decoder()
    for index in range(vocab_size):
        token, kind = by_id.get(index, f"[PAD{index}]"), TokenType.NORMAL
        if index not in by_id:
            kind = TokenType.UNUSED
        elif index in added:
            kind = TokenType.CONTROL if added[index].special else TokenType.USER_DEFINED
            # A normalised one is looked for where spaces are marks already; llama.cpp looks for all in the raw text.
            token = token.replace(SPACE, " ") if added[index].normalized else token
        tokens.append(token)
        types.append(int(kind))
    return tokens, types


def _byte_level(rules: Mapping[str, Any], merges: list[tuple[str, ...]]) -> dict[str, Value]:
    normalizer = (rules["normalizer"] or {}).get("type")
    if normalizer not in (None, "NFC"):
        raise _unknown(f"its normaliser is {normalizer}")
    found = tuple(_splitting(part) for part in _parts(rules["pre_tokenizer"], "pretokenizers"))
    if found not in SPLITTERS:
        raise _unknown("how it splits text is none of " + ", ".join(SPLITTERS.values()))
    splitter = SPLITTERS[found]
    if bool(rules["model"].get("ignore_merges")) != (splitter in WHOLE_WORDS_FIRST):
        raise _unknown(f"it splits text like {splitter} and merges otherwise")
    return {
        "model": Value.of(GGUFValueType.STRING, "gpt2"),
        "pre": Value.of(GGUFValueType.STRING, splitter),
        "merges": Value.array(GGUFValueType.STRING, [" ".join(pair) for pair in merges]),
    }


def _parts(rule: Mapping[str, Any] | None, inside: str) -> list[Mapping[str, Any]]:
    """The rules of a sequence, or the single rule."""
    if rule is None:
        return []
    return list(rule[inside]) if rule["type"] == "Sequence" else [rule]


def _splitting(rule: Mapping[str, Any]) -> tuple[str, str | bool]:
    """What a rule does, as `SPLITTERS` has it."""
    kind = rule["type"]
    if kind == "Split" and rule["behavior"] == "Isolated" and not rule["invert"]:
        return kind, rule["pattern"].get("Regex", "")
    if kind == "Digits":
        return kind, rule["individual_digits"]
    if kind == "ByteLevel" and not rule["add_prefix_space"]:
        return kind, rule["use_regex"]
    return kind, json.dumps(rule, sort_keys=True)


def _sentencepiece(
    rules: Mapping[str, Any], tokens: list[str], types: list[int], merges: list[tuple[str, ...]]
) -> dict[str, Value]:
    """Keys of llama.cpp's `llama` tokenizer; the types of byte tokens and of the unknown token are set in `types`."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    scores = []
    for index, token in enumerate(tokens):
        if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
            types[index] = int(TokenType.BYTE)
        elif token == rules["model"].get("unk_token"):
            types[index] = int(TokenType.UNKNOWN)
        made = types[index] == TokenType.NORMAL and len(token) > 1
        scores.append(float(-ranks[token]) if token in ranks else NEVER_MERGED if made else 0.0)
    return {
        "model": Value.of(GGUFValueType.STRING, "llama"),
        "pre": Value.of(GGUFValueType.STRING, "default"),
        "scores": Value.array(GGUFValueType.FLOAT32, scores),
        "add_space_prefix": Value.of(GGUFValueType.BOOL, _adds_space(rules)),
    }


def _adds_space(rules: Mapping[str, Any]) -> bool:
    """Whether a space comes before the text; spaces must become marks, in one of the two ways that there are."""
    normalizers = _parts(rules["normalizer"], "normalizers")
    splitters = _parts(rules["pre_tokenizer"], "pretokenizers")
    if [rule["type"] for rule in splitters] == ["Metaspace"] and not normalizers:
        (metaspace,) = splitters
        if metaspace["replacement"] == SPACE and not metaspace["split"]:
            return bool(metaspace["prepend_scheme"] != "never")
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepended = {"type": "Prepend", "prepend": SPACE}
    # Splitting at spaces does nothing where there are none left.
    plain = all(rule["type"] == "Split" and rule["pattern"] == {"String": " "} for rule in splitters)
    if plain and normalizers in ([replaced], [prepended, replaced]):
        return prepended in normalizers
    raise _unknown("how it treats spaces is neither Llama 2's nor Gemma's")


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[str, Value]:
    """Ids of special tokens, and which of them a text gets."""
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "unknown_token_id": tokenizer.unk_token_id,
        "padding_token_id": tokenizer.pad_token_id,
    }
    keys = {name: Value.of(GGUFValueType.UINT32, index) for name, index in ids.items() if index is not None}
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
    added = {"add_bos_token": start > 0, "add_eos_token": start + len(plain) < len(whole)}
    return keys | {name: Value.of(GGUFValueType.BOOL, value) for name, value in added.items()}
