"""The KV cache's size follows from the configuration; of the speeds, what was timed and how it is told."""

import pytest
import torch
from transformers import PreTrainedModel

import tiny
from depthcut.evaluation import speed
from depthcut.evaluation.speed import compare_speed, kv_bytes_per_token
from depthcut.model.architectures import find_architecture
from depthcut.surgery import apply
from depthcut.types import Unit

PER_BLOCK = 2 * 2 * 8 * 4  # keys and values, 2 heads of 8 numbers, float32


@pytest.mark.parametrize(("family", "tokens"), [("llama", 12), ("gemma3_text", 3), ("qwen2", 3)])
def test_kv_bytes_are_those_of_the_closed_form_below_any_window(family, tokens):
    ids = tiny.samples(num_samples=1, length=tokens).input_ids
    assert kv_bytes_per_token(tiny.model(family), ids) == PER_BLOCK * tiny.NUM_BLOCKS


def test_heads_that_share_no_keys_take_more():
    ids = tiny.samples(num_samples=1).input_ids
    assert kv_bytes_per_token(tiny.model("gpt2"), ids) == 2 * 4 * 8 * 4 * tiny.NUM_BLOCKS


def test_a_window_bounds_what_is_kept():
    model = tiny.model("gemma3_text")
    ids = tiny.samples(num_samples=1, length=24).input_ids
    num_sliding = tiny.SLIDING["layer_types"].count("sliding_attention")
    # A sliding block needs the window but for the token that is being read.
    held = 24 * (tiny.NUM_BLOCKS - num_sliding) + (tiny.SLIDING["sliding_window"] - 1) * num_sliding
    assert kv_bytes_per_token(model, ids) == PER_BLOCK * held / 24


def test_bytes_follow_the_dtype():
    ids = tiny.samples(num_samples=1).input_ids
    assert kv_bytes_per_token(tiny.model("llama").bfloat16(), ids) == PER_BLOCK * tiny.NUM_BLOCKS / 2


@pytest.mark.parametrize("removed", ["1.attn 1.ffn", "1.ffn 2.attn", "0.attn", "4.attn"])
def test_a_removed_attention_keeps_nothing(removed):
    model = tiny.model("llama")
    pruned = apply(model, find_architecture(model.config), [Unit.parse(name) for name in removed.split()])
    assert kv_bytes_per_token(pruned, tiny.samples(num_samples=1).input_ids) == PER_BLOCK * (tiny.NUM_BLOCKS - 1)


@pytest.fixture
def timed(monkeypatch):
    """`timed(models, seconds)`: compares speeds where a model's prompt and decoding take the given seconds."""

    def run(models: dict[str, PreTrainedModel], seconds: dict[str, tuple[float, float]], length: int = 12):
        calls = []

        def time_once(model, input_ids, decode_tokens):
            name = next(name for name, known in models.items() if known is model)
            calls.append((name, input_ids.shape[1], decode_tokens))
            return seconds[name]

        monkeypatch.setattr(speed, "_time_once", time_once)
        ids = tiny.samples(num_samples=1, length=length).input_ids
        advanced = []
        found = compare_speed(models, ids, decode_tokens=8, rounds=3, advance=advanced.append)
        return {(row.name, row.model): row for row in found}, calls, advanced

    return run


@pytest.fixture(scope="module")
def two_models():
    return {"dense": tiny.model("llama"), "pruned": tiny.model("llama", num_hidden_layers=2)}


def test_speeds_are_tokens_by_seconds_and_speedups_their_ratios(timed, two_models):
    found, _, _ = timed(two_models, {"dense": (3.0, 4.0), "pruned": (1.5, 1.0)})
    assert found["prompt_tokens_per_second", "dense"].value == 12 / 3
    assert found["decode_tokens_per_second", "pruned"].value == 8 / 1
    assert found["prompt_speedup", "pruned"].value == 2
    assert found["decode_speedup", "pruned"].value == 4
    assert {model for name, model in found if name.endswith("_speedup")} == {"pruned"}
    for row in found.values():
        assert row.samples == 3
        assert row.data.startswith("batch 1, prompt of 12, 8 decoded, ")


def test_rounds_alternate_and_the_first_is_thrown_away(timed, two_models):
    _, calls, advanced = timed(two_models, {"dense": (1.0, 1.0), "pruned": (1.0, 1.0)})
    order = [name for name, *_ in calls]
    assert order == ["dense", "pruned", "pruned", "dense"] * 2
    assert sum(advanced) == 4


def test_prompt_and_decoded_tokens_fit_the_context(timed, two_models):
    found, calls, _ = timed(two_models, {"dense": (1.0, 1.0), "pruned": (1.0, 1.0)}, length=64)
    assert {length for _, length, _ in calls} == {56}
    assert found["prompt_tokens_per_second", "dense"].value == 56


def test_learned_positions_are_not_run_past_their_end():
    found = compare_speed({"dense": tiny.model("gpt2")}, torch.full((1, 64), 3), decode_tokens=8, rounds=1)
    assert {row.name for row in found} == {"prompt_tokens_per_second", "decode_tokens_per_second"}
    assert {row.data.split(", ")[1] for row in found} == {"prompt of 56"}
