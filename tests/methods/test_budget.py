"""Budgets as users say them: what is read, what it counts, that it is met, and by no more than it takes."""

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

import depthcut
import shape_parts
import tiny
from depthcut.methods.budget import Budget
from depthcut.model.architectures import find_architecture
from depthcut.model.cache import cache_bytes
from depthcut.model.latency import cache_argument
from depthcut.model.units import sizes_from_config
from depthcut.preview.dry_run import preview
from depthcut.run.recipe import Recipe
from depthcut.run.session import find_model, memory_of, pose_problem
from depthcut.types import InputError, Latency

CONTEXT = 24
KEPT_FAMILIES = ("llama", "gpt2", "mamba2", "lfm2", "qwen3_next", "jamba")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("dense") / "llama", "llama")


def problem(folder, budget, **options):
    recipe = Recipe.build(model=str(folder), budget=budget, **({"unit": "sublayer"} | options))
    return pose_problem(recipe, find_model(recipe))


def memory(folder, context, batch=1):
    source = find_model(Recipe.build(model=str(folder)))
    sizes = sizes_from_config(source.config, source.architecture, source.dtype)
    return memory_of(source, sizes, context, batch)


@pytest.mark.parametrize("family", KEPT_FAMILIES)
def test_a_cache_is_as_large_as_the_one_that_transformers_fills(family):
    config = tiny.config(family)
    architecture = find_architecture(config)
    model = tiny.model(family).to(torch.bfloat16)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.zeros(1, CONTEXT, dtype=torch.int64), **{cache_argument(model): cache})
    held = [value for layer in cache.layers for value in vars(layer).values()]
    tensors = [tensor for value in held for tensor in (value.values() if isinstance(value, dict) else [value])]
    filled = sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor) and tensor.dim())
    sizes = sizes_from_config(config, architecture, torch.bfloat16)
    assert sum(cache_bytes(config, architecture, sizes, CONTEXT).values()) == filled


def test_a_window_ends_what_is_kept():
    config = tiny.config("gemma3_text")
    architecture = find_architecture(config)
    sizes = sizes_from_config(config, architecture, torch.float32)
    kept = cache_bytes(config, architecture, sizes, 1000)
    for layer, is_full in enumerate(shape_parts.FULL):
        per_token = sizes.units[depthcut.Unit(layer, "attn")].kv_bytes_per_token
        assert kept[depthcut.Unit(layer, "attn")] == per_token * (
            1000 if is_full else shape_parts.SLIDING["sliding_window"]
        )


def test_attentions_and_feed_forward_parts_trade_by_the_context(folder):
    at_short, at_long = memory(folder, 1), memory(folder, 10_000)
    attention, ffn = depthcut.Unit(0, "attn"), depthcut.Unit(0, "ffn")
    assert at_short.units[attention] < at_short.units[ffn]
    assert at_long.units[attention] > at_long.units[ffn]
    assert at_short.units[ffn] == at_long.units[ffn]
    assert memory(folder, 100, batch=4).units[attention] - memory(folder, 100).units[attention] == pytest.approx(
        3 * (memory(folder, 200).units[attention] - memory(folder, 100).units[attention])
    )


@pytest.mark.parametrize("context", [16, 5000])
def test_a_memory_budget_is_met_and_not_by_a_step_too_many(folder, context):
    whole = memory(folder, context)
    limit = int(0.8 * whole.without(()))
    options = tiny.SHORT_RUN | {"remove": None, "repair": "none", "unit": "sublayer", "method": "greedy,swap=false"}
    plan = depthcut.prune(str(folder), budget=f"memory={limit}B,context={context}", **options).plan
    steps = [step for step in plan.steps if step.applied]
    before_last = [unit for step in steps[:-1] for unit in step.remove]
    assert whole.without(plan.removed) <= limit < whole.without(before_last)
    assert plan.budget == f"reach memory={limit / 2**30:g}GiB,context={context}"


def test_several_budgets_hold_at_once(folder):
    options = tiny.SHORT_RUN | {"remove": None, "repair": "none", "unit": "sublayer", "method": "greedy,swap=false"}
    plan = depthcut.prune(str(folder), budget="parameters=0.9+kv=0.6", **options).plan
    sizes = problem(folder, "parameters=0.9").sizes
    assert sizes.parameters_without(plan.removed) <= 0.9 * sizes.parameters
    assert sizes.kv_bytes_without(plan.removed) <= 0.6 * sizes.kv_bytes_per_token
    assert plan.budget == "reach parameters=0.9+kv=0.6"


def test_tokens_per_second_count_seconds_of_a_step_of_all_sequences(folder):
    posed = problem(folder, "tokens-per-second=50,context=32,batch=4")
    assert posed.budget.timing == (32, 4)
    # 0.1 s a step of 4 tokens are 40 tokens a second; 50 take 0.08 s.
    timed = replace(posed, latency=Latency(token_seconds=0.1, unit_seconds={"attn": 0.006, "ffn": 0.004}))
    first, *_, last = timed.units
    assert not timed.is_met([unit for unit in timed.units if unit.layer in (0,)])
    assert timed.is_met([unit for unit in timed.units if unit.layer in (0, 1)])
    assert timed.saving((first,), ()) == pytest.approx(0.006)
    assert timed.saving((last,), [unit for unit in timed.units if unit.layer == 0] + [first]) <= 0.004


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("memory=1GiB", "how long are the sequences"),
        ("memory=1GiB,context=0", "cannot be set so"),
        ("memory=1,context=8", "is unknown"),
        ("kv=0.7,context=8", "cannot be set so"),
        ("tokens-per-second=0", "is unknown"),
        ("parameters=0.9+parameters=0.8", "names parameters twice"),
        ("latency=0.8+tokens-per-second=9,context=64", "counts time twice"),
        ("parameters=0.9+speed=2", "is unknown"),
    ],
)
def test_budgets_that_cannot_be_read(text, words):
    with pytest.raises(InputError, match=words):
        Budget.parse(None, text)


def test_what_cannot_be_met_is_refused_before_any_work(folder):
    with pytest.raises(InputError, match="all that may go are not enough"):
        problem(folder, "memory=1KiB,context=16")
    with pytest.raises(InputError, match="nothing has to go: the model takes"):
        problem(folder, "memory=1GiB,context=16")
    with pytest.raises(InputError, match="all that may go are not enough"):
        problem(folder, "kv=0.4+parameters=0.01")


def test_a_dry_run_tells_what_decoding_takes_at_contexts_up_to_the_models_own(folder):
    recipe = Recipe.build(model=str(folder), method="deepest-first", **tiny.SHORT_RUN)
    found = preview(recipe)
    assert list(found.decoding_bytes) == [tiny.SHAPE["max_position_embeddings"]]
    for context, (dense, pruned) in found.decoding_bytes.items():
        assert dense == memory(folder, context).without(())
        assert pruned == memory(folder, context).without(found.plan.removed) < dense
