"""A value that is not finite wins no search, and is told with the unit where it begins."""

import pytest
import torch

import tiny
from depthcut.ablation.ablation import Ablation
from depthcut.methods.budget import Budget
from depthcut.methods.greedy import Greedy
from depthcut.methods.problem import Problem
from depthcut.model.architectures import find_architecture
from depthcut.model.stream import DecoderStream
from depthcut.model.units import measure_sizes
from depthcut.types import InputError, Unit


@pytest.fixture
def breaks_without_2_ffn():
    """A stream whose block 4 gives NaN unless 2.ffn has left its mark."""
    model = tiny.model()
    blocks = model.model.layers

    def mark(_, __, output):
        output = output.clone()
        output[..., 0] += 1e4
        return output

    def look(_, args):
        return (args[0] if bool((args[0][..., 0] > 1e3).all()) else torch.full_like(args[0], torch.nan), *args[1:])

    blocks[2].mlp.register_forward_hook(mark)
    blocks[4].register_forward_pre_hook(look)
    return DecoderStream(model, find_architecture(model.config))


@pytest.mark.parametrize("objective", ["kl", "loss"])
def test_a_value_that_is_not_finite_says_where_it_begins(breaks_without_2_ffn, objective):
    ablation = Ablation(breaks_without_2_ffn, tiny.samples(), objective)
    assert ablation([Unit(1, "ffn")]) >= 0
    with pytest.raises(InputError, match=r"activations at 4\.attn are not finite without 2\.ffn .*--dtype float32"):
        ablation([Unit(2, "ffn")])


@pytest.mark.parametrize("strategy", ["exhaustive", "lazy"])
def test_nan_wins_no_search(breaks_without_2_ffn, strategy):
    stream = breaks_without_2_ffn
    problem = Problem(
        architecture=stream.architecture,
        num_blocks=tiny.NUM_BLOCKS,
        sizes=measure_sizes(stream.model, stream.architecture),
        unit="sublayer",
        budget=Budget("count", 2),
        ablation=Ablation(stream, tiny.samples(), "kl"),
    )
    with pytest.raises(InputError, match="are not finite without"):
        Greedy(strategy=strategy).path(problem)
