"""A tokenizer's keys must be those with which llama.cpp splits text as it does; an unknown one is refused."""

import pytest
from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

import tiny
from depthcut.export.gguf.tokenizer import tokenizer_keys
from depthcut.types import InputError

LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level(use_regex=False, **options):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex, **options)


def after_expression(expression):
    split = pre_tokenizers.Split(Regex(expression), behavior="isolated")
    return pre_tokenizers.Sequence([split, byte_level()])


def bpe(splitting, normalizer=None, ignore_merges=False):
    """Bytes, the merges of `the`, and a special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, "th", "the"])}
    inner = Tokenizer(models.BPE(vocabulary, [("t", "h"), ("th", "e")], ignore_merges=ignore_merges))
    inner.pre_tokenizer, inner.decoder = splitting, decoders.ByteLevel()
    if normalizer is not None:
        inner.normalizer = normalizer
    inner.add_special_tokens([AddedToken("<|end|>", special=True)])
    inner.add_tokens([AddedToken("<tool>", special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")


def sentencepiece(normalizer, splitting=None):
    """The pieces of `▁the` with byte fallback."""
    special = ["<unk>", "<s>", "</s>"]
    pieces = ["t", "h", "e", "▁", "he", "the", "▁the", "zz"]
    vocabulary = {token: i for i, token in enumerate([*special, *(f"<0x{i:02X}>" for i in range(256)), *pieces])}
    merges = [("h", "e"), ("t", "he"), ("▁", "the")]
    inner = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if normalizer is not None:
        inner.normalizer = normalizer
    if splitting is not None:
        inner.pre_tokenizer = splitting
    inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    inner.add_special_tokens([AddedToken(token, special=True) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def values(tokenizer, vocab_size=300):
    keys = tokenizer_keys(tokenizer, vocab_size)
    return {key.removeprefix("tokenizer.").removeprefix("ggml."): value.read() for key, value in keys.items()}


@pytest.mark.parametrize(
    ("splitting", "ignore_merges", "name"),
    [
        (byte_level(use_regex=True), False, "gpt-2"),
        (
            pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level(use_regex=True)]),
            False,
            "smollm",
        ),
        (after_expression(LETTERS + r"\p{N}{1,3}" + REST), True, "llama-bpe"),
        (after_expression(LETTERS + r"\p{N}" + REST), False, "qwen2"),
    ],
)
def test_a_byte_level_tokenizer_is_known_by_how_it_splits(splitting, ignore_merges, name):
    found = values(bpe(splitting, ignore_merges=ignore_merges))
    assert (found["model"], found["pre"]) == ("gpt2", name)
    assert found["merges"] == ["t h", "th e"]
    assert found["tokens"][256:260] == ["th", "the", "<|end|>", "<tool>"]
    kinds = [TokenType.NORMAL, TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNUSED]
    assert [found["token_type"][index] for index in (257, 258, 259, 260)] == kinds
    assert len(found["tokens"]) == len(found["token_type"]) == 300
    assert found["tokens"][260] == "[PAD260]"
    assert found["eos_token_id"] == 258
    assert "bos_token_id" not in found
    assert not found["add_bos_token"]


def test_qwens_normaliser_is_taken():
    found = values(bpe(after_expression(LETTERS + r"\p{N}" + REST), normalizers.NFC()))
    assert found["pre"] == "qwen2"


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        (bpe(after_expression(r"\w+|\W+")), "how it splits text is none of gpt-2, smollm, llama-bpe, qwen2"),
        (bpe(pre_tokenizers.ByteLevel(add_prefix_space=True)), "how it splits text is none of"),
        (bpe(pre_tokenizers.Sequence([pre_tokenizers.Digits(), byte_level(use_regex=True)])), "how it splits text"),
        (bpe(after_expression(LETTERS + r"\p{N}{1,3}" + REST)), "it splits text like llama-bpe and merges otherwise"),
        (bpe(byte_level(use_regex=True), normalizers.Lowercase()), "its normaliser is Lowercase"),
        (sentencepiece(normalizers.Lowercase()), "how it treats spaces is neither Llama 2's nor Gemma's"),
        (
            PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))),
            "it is of kind WordLevel, not BPE",
        ),
    ],
)
def test_an_unknown_tokenizer_is_refused_with_the_reason(tokenizer, reason):
    with pytest.raises(InputError, match=f"cannot be written as GGUF: {reason}.*use the format hf"):
        tokenizer_keys(tokenizer, 300)


@pytest.mark.parametrize(
    ("normalizer", "splitting", "adds_space"),
    [
        (normalizers.Replace(" ", "▁"), None, False),
        (normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"), False),
        (normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None, True),
        (None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False), True),
        (None, pre_tokenizers.Metaspace(prepend_scheme="never", split=False), False),
    ],
)
def test_sentencepiece_scores_follow_the_ranks_of_the_merges(normalizer, splitting, adds_space):
    found = values(sentencepiece(normalizer, splitting))
    assert (found["model"], found["pre"]) == ("llama", "default")
    assert found["add_space_prefix"] == adds_space
    scores = dict(zip(found["tokens"], found["scores"], strict=True))
    assert scores["he"] > scores["the"] > scores["▁the"] > scores["zz"]
    types = dict(zip(found["tokens"], found["token_type"], strict=True))
    expected = {"<unk>": 2, "<s>": 3, "<0x0A>": 6, "the": 1, "[PAD299]": 5}
    assert {token: types[token] for token in expected} == expected
    assert found["add_bos_token"]
    assert not found["add_eos_token"]
    assert (found["bos_token_id"], found["eos_token_id"], found["unknown_token_id"]) == (1, 2, 0)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused():
    with pytest.raises(InputError, match="writes token 258, and the model knows 200 tokens"):
        tokenizer_keys(tiny.tokenizer(), 200)


def test_the_chat_template_goes_along():
    tokenizer = tiny.tokenizer()
    assert "chat_template" not in values(tokenizer)
    tokenizer.chat_template = "{{ messages }}"
    assert values(tokenizer)["chat_template"] == "{{ messages }}"
