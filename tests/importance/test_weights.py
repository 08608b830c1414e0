"""`magnitude` and `taylor` against their definitions, written out with torch's own backward pass."""

import pytest

import tiny
from depthcut.importance.static import static_scores
from depthcut.model.architectures import find_architecture
from depthcut.model.stream import DecoderStream
from depthcut.types import InputError


def values(model, *metrics):
    found, _ = static_scores(DecoderStream(model, find_architecture(model.config)), tiny.samples(3), also=metrics)
    return {(scores.metric, scores.unit): scores.values for scores in found}


def by_block(model, number):
    """Sums over the weights of each block."""
    sums = dict.fromkeys(range(tiny.NUM_BLOCKS), 0.0)
    for name, weight in model.named_parameters():
        if ".layers." in name:
            sums[int(name.split(".layers.")[1].split(".")[0])] += float(number(weight).abs().sum())
    return {str(layer): value for layer, value in sums.items()}


@pytest.mark.parametrize("power", [1, 2])
def test_magnitude_is_the_sum_over_a_blocks_weights(power):
    model = tiny.model()
    name = "magnitude" if power == 1 else "magnitude,power=2"
    found = values(model, f"magnitude,power={power}")
    assert found[name, "block"] == pytest.approx(by_block(model, lambda w: w.detach() ** power), rel=tiny.ROUNDING)
    for layer in range(tiny.NUM_BLOCKS):
        parts = found[name, "sublayer"][f"{layer}.attn"] + found[name, "sublayer"][f"{layer}.ffn"]
        assert parts == pytest.approx(found[name, "block"][str(layer)])


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_taylor_is_the_first_order_of_the_loss(family):
    model = tiny.model(family)
    found = values(model, "taylor", "taylor,power=2")
    ids = tiny.samples(3).input_ids
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    first_order = by_block(model, lambda w: w.detach() * (0 if w.grad is None else w.grad))
    assert found["taylor", "block"] == pytest.approx(first_order, rel=10 * tiny.ROUNDING)
    squares = by_block(model, lambda w: (w.detach() * (0 if w.grad is None else w.grad)) ** 2)
    assert found["taylor,power=2", "block"] == pytest.approx(squares, rel=10 * tiny.ROUNDING)


def test_a_weight_that_is_not_finite_is_named_with_its_unit():
    model = tiny.model()
    model.lm_head.weight.data[5] = float("inf")
    with pytest.raises(InputError, match="the metric taylor is not finite at 0"):
        values(model, "taylor")
