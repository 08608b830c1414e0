"""The KV cache's size follows from the configuration; of the speeds, what was timed and how it is told."""

import itertools

import pytest
import torch
from transformers import PreTrainedModel

import tiny
from depthcut.evaluation import speed
from depthcut.evaluation.speed import Seconds, compare_speed, kv_bytes_per_token, time_in_turn, time_once
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

    def run(models: dict[str, PreTrainedModel], seconds: dict[str, tuple[float, float]], length: int = 24):
        calls = []

        def time_once(model, _, prompt_tokens, decode_tokens):
            name = next(name for name, known in models.items() if known is model)
            calls.append((name, prompt_tokens, decode_tokens))
            prompt, decode = seconds[name]
            return Seconds(prompt, decode * prompt_tokens)

        monkeypatch.setattr(speed, "time_once", time_once)
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
    assert found["prompt_tokens_per_second", "dense"].value == 24 / 3
    assert found["decode_tokens_per_second", "pruned"].value == 8 / 24
    assert found["short_decode_tokens_per_second", "pruned"].value == 8 / 16
    assert found["prompt_speedup", "pruned"].value == 2
    assert found["decode_speedup", "pruned"].value == found["short_decode_speedup", "pruned"].value == 4
    assert {model for name, model in found if name.endswith("_speedup")} == {"pruned"}
    for (name, _), row in found.items():
        assert row.samples == 3
        assert row.data.startswith(f"batch 1, prompt of {16 if name.startswith('short') else 24}, 8 decoded, ")


def test_rounds_alternate_and_the_first_is_thrown_away(timed, two_models):
    _, calls, advanced = timed(two_models, {"dense": (1.0, 1.0), "pruned": (1.0, 1.0)})
    names, lengths = [name for name, *_ in calls], [length for _, length, _ in calls]
    assert names == (["dense", "pruned"] * 2 + ["pruned", "dense"] * 2) * 2
    assert lengths == [24, 24, 16, 16] * 4
    assert sum(advanced) == 4


def test_what_disturbs_a_round_disturbs_no_speedup():
    # The machine is busy in every other round: medians of times alone would compare busy rounds with quiet ones.
    clock = iter([1.0, 1.0, 1.0, 1.0] + [5.0, 5.0, 5.0, 5.0] + [1.0] * 4 + [5.0] * 4)

    def timer(cost):
        return lambda prompt, decode: Seconds(busy := cost * next(clock), busy)

    found = time_in_turn({"dense": timer(3.0), "pruned": timer(2.0)}, 24, rounds=3)
    assert {row.value for row in found if row.name.endswith("_speedup")} == {1.5}


def test_the_warm_up_round_counts_for_nothing():
    clock = iter([100.0] * 4 + [1.0] * 12)
    found = time_in_turn(
        {name: lambda prompt, decode: Seconds(taken := next(clock), taken) for name in ("dense", "pruned")},
        24,
        decode_tokens=8,
        rounds=3,
    )
    assert {row.value for row in found if row.name == "decode_tokens_per_second"} == {8.0}


@pytest.mark.parametrize(("spread", "rounds_taken"), [(1.04, 3), (1.2, 5)])
def test_timing_ends_early_where_the_ratios_have_settled(spread, rounds_taken):
    # Both models' times swing together, their ratio only by the spread.
    busy = itertools.cycle([1.0] * 4 + [3.0] * 4)

    def timer(cost, disturbance):
        return lambda prompt, decode: Seconds(taken := cost * next(busy) * next(disturbance), taken)

    swing = itertools.cycle([1.0] * 2 + [1 / spread] * 2)
    timers = {"dense": timer(3.0, itertools.repeat(1.0)), "pruned": timer(2.0, swing)}
    advanced = []
    found = time_in_turn(timers, 24, rounds=5, advance=advanced.append)
    assert {row.samples for row in found} == {rounds_taken}
    assert sum(advanced) == 6


def test_a_model_alone_is_timed_in_every_round():
    found = time_in_turn({"dense": lambda prompt, decode: Seconds(1.0, 1.0)}, 24, rounds=5)
    assert {row.samples for row in found} == {5}


def test_a_prompt_shorter_than_the_short_context_is_both(timed, two_models):
    found, calls, _ = timed(two_models, {"dense": (1.0, 1.0), "pruned": (1.0, 1.0)}, length=12)
    assert {length for _, length, _ in calls} == {12}
    assert len(calls) == 2 * 4
    assert found["short_decode_tokens_per_second", "dense"].value == 8 / 12


def test_prompt_and_decoded_tokens_fit_the_context(timed, two_models):
    found, calls, _ = timed(two_models, {"dense": (1.0, 1.0), "pruned": (1.0, 1.0)}, length=64)
    assert {length for _, length, _ in calls} == {56, 16}
    assert found["prompt_tokens_per_second", "dense"].value == 56


def test_learned_positions_are_not_run_past_their_end():
    found = compare_speed({"dense": tiny.model("gpt2")}, torch.full((1, 64), 3), decode_tokens=8, rounds=1)
    phases = ("prompt", "decode", "short_decode")
    assert {row.name for row in found} == {f"{phase}_tokens_per_second" for phase in phases}
    assert {row.data.split(", ")[1] for row in found} == {"prompt of 56", "prompt of 16"}


@pytest.mark.parametrize("family", tiny.REPRESENTATIVE)
def test_only_the_last_tokens_logits_are_computed(family):
    model = tiny.model(family)
    shapes = []
    model.get_output_embeddings().register_forward_hook(lambda *call: shapes.append(call[2].shape[1]))
    taken = time_once(model, tiny.samples(num_samples=1).input_ids, 12, 3)
    assert shapes == [1] * 4
    assert taken.prompt > 0 and taken.decode > 0
