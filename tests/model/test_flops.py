"""Operations counted from shapes must be those that torch counts as the model runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import tiny
from depthcut.model.architectures import find_architecture
from depthcut.model.flops import measure_work
from depthcut.model.load import resolve
from depthcut.model.stream import DecoderStream
from depthcut.model.sublayers import take_out
from depthcut.model.units import empty_model
from depthcut.types import Unit

LENGTH = 24
FAMILIES = ["llama", "gemma3_text", "mixtral", "gpt2", "gpt_neox", "qwen3_moe", "deepseek_v2", "llama4_text", "lfm2"]


def plain(family):
    """A model whose attentions and experts are products that torch's counter knows."""
    model = tiny.model(family, attn_implementation="eager")
    model.config._experts_implementation = "eager"
    return model


def work_from_config(model):
    return measure_work(empty_model(model.config, model.dtype), find_architecture(model.config))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_pass_counts_what_torch_counts(family):
    model = plain(family)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=tiny.samples(2, LENGTH).input_ids, use_cache=False)
    # The rest are rotary angles, once for all blocks.
    assert 2 * work_from_config(model).forward_flops(LENGTH) == pytest.approx(counter.get_total_flops(), rel=2e-3)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mixtral", "gpt2"])
def test_every_unit_counts_by_itself(family):
    model = plain(family)
    stream = DecoderStream(model, find_architecture(model.config))
    work = work_from_config(model)
    with torch.no_grad():
        batch = stream.prepare(tiny.samples(1, LENGTH).input_ids)
        for position, unit in enumerate(stream.units):
            with FlopCounterMode(display=False) as counter:
                stream.run(batch, start=position, stop=position + 1)
            assert work.units[unit].flops(LENGTH) == counter.get_total_flops(), unit


def test_experts_count_as_often_as_a_token_goes_through_them():
    few, all_of_them = (work_from_config(tiny.model("mixtral", num_experts_per_tok=count)) for count in (1, 4))
    per_token = {count: work.block_flops(LENGTH) for count, work in ((1, few), (4, all_of_them))}
    experts = 2 * 3 * tiny.SHAPE["hidden_size"] * tiny.SHAPE["intermediate_size"] * tiny.NUM_BLOCKS * LENGTH
    assert per_token[4] - per_token[1] == 3 * experts


def test_what_was_removed_computes_nothing():
    model = tiny.model()
    architecture = find_architecture(model.config)
    model.config.removed_sublayers = ["2.attn"]
    before = measure_work(model, architecture)
    take_out(model, architecture)
    after = measure_work(model, architecture)
    gone = Unit(2, "attn")
    assert [unit for unit in after.units if after.units[unit] != before.units[unit]] == [gone]
    assert after.units[gone].flops(LENGTH) == 0


@pytest.mark.long
@pytest.mark.real
def test_a_real_model_counts_what_torch_counts():
    source = resolve("smollm2")
    model = source.load_model()
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counts = {attention: lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=counts) as counter:
        model(input_ids=torch.arange(64)[None], use_cache=False)
    work = measure_work(empty_model(source.config, source.dtype), source.architecture)
    assert work.forward_flops(64) == pytest.approx(counter.get_total_flops(), rel=1e-3)
