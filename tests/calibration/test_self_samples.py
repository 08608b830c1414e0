"""The model's own samples: its own distribution, seeded, without a trace in model or random state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from depthcut.calibration import sample_self
from depthcut.types import InputError

EOS = 0


def tiny(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 16,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "bos_token_id": 1,
        "eos_token_id": EOS,
        "pad_token_id": EOS,
    }
    return LlamaForCausalLM(LlamaConfig(**(shape | changes))).eval()


def test_samples_open_with_bos_and_have_their_full_length(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    made = sample_self(tiny(), bos_tokenizer, num_samples=11, length=40, seed=0)
    assert made.input_ids.shape == (11, 40)
    assert made.input_ids[:, 0].tolist() == [bos_tokenizer.bos_token_id] * 11
    assert made.attention_mask.all()
    assert len({tuple(row) for row in made.input_ids.tolist()}) == 11
    assert (made.description.source, made.description.seed) == ("self", 0)


def test_sequences_open_by_turns_with_bos_a_word_and_the_chat_template(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    chatty = PreTrainedTokenizerFast(
        tokenizer_object=bos_tokenizer.backend_tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        chat_template="{% for message in messages %}Sentence of {{ message.role }}: {{ message.content }}{% endfor %}",
    )
    model = tiny(vocab_size=400)
    rows = sample_self(model, chatty, num_samples=9, length=12, seed=0).input_ids.tolist()
    before = chatty("Sentence of user: ", add_special_tokens=False)["input_ids"]
    assert [row[: len(before)] for row in rows[2::3]] == [before] * 3
    assert [row[0] for row in rows[:2]] == [1, 1]
    drawn = [chatty.decode(row[1]) for row in rows[1::3]]
    assert all(word.isalpha() and word[0].isupper() for word in drawn)
    plain = sample_self(model, bos_tokenizer, num_samples=9, length=12, seed=0).input_ids.tolist()
    assert [chatty.decode(row[1]) for row in plain[1:2]] == drawn[:1]
    chatty.chat_template = "{{ raise_exception('roles must alternate') }}"
    assert sample_self(model, chatty, num_samples=9, length=12, seed=0).input_ids.tolist() == plain


def test_fewer_samples_are_the_first_of_more(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    more, fewer = (
        sample_self(tiny(), bos_tokenizer, num_samples=count, length=9, seed=2).input_ids for count in (70, 5)
    )
    assert torch.equal(more[:5], fewer)


def test_what_stands_for_no_text_is_not_written(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    padding = PreTrainedTokenizerFast(
        tokenizer_object=bos_tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>", pad_token="a"
    )
    wide = tiny(vocab_size=len(padding) + 400)
    ids = sample_self(wide, padding, num_samples=64, length=30, seed=0).input_ids
    assert int(ids.max()) < len(padding) and not (ids == padding.pad_token_id).any()


def test_batches_that_were_kept_are_not_written_again(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    asked: dict[str, Any] = {"num_samples": 11, "length": 6, "seed": 3, "batch_size": 4}
    kept: list[torch.Tensor] = []
    tokens: list[int] = []
    whole = sample_self(tiny(), bos_tokenizer, **asked, keep=kept.append, advance=tokens.append)
    assert [len(batch) for batch in kept] == [4, 4, 3] and sum(tokens) == 11 * 5
    later: list[torch.Tensor] = []
    resumed = sample_self(tiny(), bos_tokenizer, **asked, known=kept[:2], keep=later.append)
    assert torch.equal(resumed.input_ids, whole.input_ids) and len(later) == 1


def test_sequences_go_on_after_eos_with_other_tokens(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    ids = sample_self(tiny(), bos_tokenizer, num_samples=8, length=60, seed=0).input_ids
    assert all((row[:-10] == EOS).any() for row in ids)
    assert all((row[-10:] != EOS).any() for row in ids)


def test_samples_follow_the_models_distribution_not_its_generation_settings(
    bos_tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = tiny()
    model.generation_config = GenerationConfig(
        eos_token_id=EOS, pad_token_id=EOS, temperature=0.01, top_k=1, repetition_penalty=3.0, suppress_tokens=[5]
    )
    settings = model.generation_config
    # A head of zeros but for a constant input makes every token independent: the shares must be the softmax.
    with torch.no_grad():
        model.model.norm.weight.zero_()
    ids = sample_self(model, bos_tokenizer, num_samples=32, length=101, seed=0).input_ids[:, 1:]
    shares = torch.bincount(ids.flatten(), minlength=16) / ids.numel()
    assert torch.allclose(shares, torch.full((16,), 1 / 16), atol=0.015)
    assert model.generation_config is settings


def test_cached_sampling_is_sampling_from_the_whole_sequence(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny(initializer_range=1.0)
    made = sample_self(model, bos_tokenizer, num_samples=3, length=12, seed=5)
    ids = torch.ones(3, 1, dtype=torch.int64)
    draws = torch.stack([torch.rand(12, generator=torch.Generator().manual_seed(5_000_015 + row)) for row in range(3)])
    with torch.no_grad():
        for at in range(1, 12):
            chances = model(ids, use_cache=False).logits[:, -1].softmax(-1)
            drawn = torch.searchsorted(chances.cumsum(-1), draws[:, at, None].contiguous())
            ids = torch.cat([ids, drawn], dim=1)
    assert made.input_ids.tolist() == ids.tolist()


def test_the_seed_alone_decides_and_the_global_random_state_stays(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = sample_self(model, bos_tokenizer, num_samples=9, length=20, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    again = sample_self(model, bos_tokenizer, num_samples=9, length=20, seed=1)
    other = sample_self(model, bos_tokenizer, num_samples=9, length=20, seed=2)
    assert first.description.digest == again.description.digest != other.description.digest
    assert first.document_digests == again.document_digests
    assert not first.document_digests & other.document_digests


def test_settings_come_back_after_a_failure(
    bos_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny()
    settings = model.generation_config

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        sample_self(model, bos_tokenizer, num_samples=1, length=5, seed=0)
    assert model.generation_config is settings


def test_without_bos_in_the_tokenizer_the_models_is_used_then_eos(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.bos_token_id is None
    assert sample_self(tiny(bos_token_id=7), tokenizer, num_samples=1, length=2, seed=0).input_ids[0, 0] == 7
    assert sample_self(tiny(bos_token_id=None), tokenizer, num_samples=1, length=2, seed=0).input_ids[0, 0] == EOS


def test_a_model_without_either_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(InputError, match="neither BOS nor EOS"):
        sample_self(tiny(bos_token_id=None), bare, num_samples=1, length=5, seed=0)


def test_one_token_is_no_sequence(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match="at least 1 sample and 2 token ids"):
        sample_self(tiny(), bos_tokenizer, num_samples=1, length=1, seed=0)
