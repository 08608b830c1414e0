"""The ideal speed-up counts what stays, whatever is removed: the vocabulary projection and the cache."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import tiny
from depthcut.evaluation.ideal import with_ideals, work_of
from depthcut.evaluation.speed import Seconds, time_in_turn, time_once
from depthcut.model.architectures import find_architecture
from depthcut.model.units import measure_sizes
from depthcut.surgery import apply
from depthcut.types import Unit

PROMPT, DECODED = 24, 8


def work(model):
    return work_of(model.config, measure_sizes(model, find_architecture(model.config)), 4)


def pruned(model, names):
    return apply(model, find_architecture(model.config), [Unit.parse(name) for name in names.split()])


def ideals(works):
    return {row.name: row.value for row in with_ideals([], works, PROMPT, DECODED)}


@pytest.mark.parametrize("removed", ["", "2.attn 2.ffn", "0.attn 3.attn", "5.ffn"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gpt_neox", "gemma3_text"])
def test_flops_are_those_that_torch_counts(family, removed):
    # Full attention everywhere, computed plainly: the counter knows nothing of causality.
    window = {"layer_types": ["full_attention"] * tiny.NUM_BLOCKS} if family == "gemma3_text" else {}
    model = pruned(tiny.model(family, attn_implementation="eager", **window), removed)
    with FlopCounterMode(display=False) as counter:
        time_once(model, tiny.samples(1, PROMPT).input_ids, PROMPT, 0)
    found = work(model)
    half_of_square = found.attended_flops * (PROMPT**2 - PROMPT * (PROMPT + 1) / 2)
    blocks = find_architecture(model.config).block_list(model)
    # The counter leaves out norms and biases, which are small beside matrices in any real model.
    vectors = 2 * PROMPT * sum(parameter.numel() for parameter in blocks.parameters() if parameter.dim() == 1)
    # Rotary angles are a product too, once for all blocks.
    rotary = counter.get_total_flops() * 0.001
    expected = counter.get_total_flops() + vectors
    assert found.prompt_flops(PROMPT) + half_of_square == pytest.approx(expected, abs=rotary)


def test_bytes_are_those_of_weights_and_cache():
    model = tiny.model("llama")
    tensors = [*model.model.layers.parameters(), model.lm_head.weight]
    found = work(model)
    assert found.weight_bytes == sum(tensor.nbytes for tensor in tensors)
    assert found.decode_bytes(10) - found.weight_bytes == 10 * 2 * 2 * 8 * 4 * tiny.NUM_BLOCKS


def test_an_input_embedding_of_its_own_is_not_read():
    tied, untied = (work(tiny.model("llama", tie_word_embeddings=value)) for value in (True, False))
    assert tied == untied


def test_removing_half_of_the_blocks_is_no_factor_of_two():
    model = tiny.model("llama")
    half = pruned(model, "1.attn 1.ffn 2.attn 2.ffn 4.attn 4.ffn")
    found = ideals({"dense": work(model), "pruned": work(half)})
    assert 1 < found["decode_ideal_speedup"] < found["prompt_ideal_speedup"] < 2


def test_nothing_removed_gains_nothing_and_attentions_gain_more_at_long_context():
    model = tiny.model("llama")
    assert set(ideals({"dense": work(model), "pruned": work(model)}).values()) == {1.0}
    found = ideals({"dense": work(model), "pruned": work(pruned(model, "0.attn 2.attn 4.attn"))})
    assert found["decode_ideal_speedup"] > found["short_decode_ideal_speedup"] > 1


def test_units_can_be_left_out_by_name():
    model = tiny.model("llama")
    sizes = measure_sizes(model, find_architecture(model.config))
    removed = [Unit(0, "attn"), Unit(5, "ffn")]
    assert work_of(model.config, sizes, 4, removed) == work(pruned(model, "0.attn 5.ffn"))


def test_bytes_follow_the_dtype():
    model = tiny.model("llama").to(torch.bfloat16)
    sizes = measure_sizes(model, find_architecture(model.config))
    assert work_of(model.config, sizes, 2).decode_bytes(7) == work(tiny.model("llama")).decode_bytes(7) / 2


def test_ideals_stand_behind_what_was_measured_of_the_same_phase():
    model = tiny.model("llama")
    works = {"dense": work(model), "pruned": work(pruned(model, "2.attn 2.ffn"))}
    timers = dict.fromkeys(works, lambda prompt, decode: Seconds(1.0, 1.0))
    names = [row.name for row in with_ideals(time_in_turn(timers, PROMPT, rounds=1), works, PROMPT)]
    measures = ("tokens_per_second", "tokens_per_second", "speedup", "ideal_speedup")
    assert names == [f"{phase}_{measure}" for phase in ("prompt", "decode", "short_decode") for measure in measures]
