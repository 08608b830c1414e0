"""Too little memory halves the batch, and else ends with what to lower; what was found is kept."""

import pytest
import torch

import tiny
from depthcut.ablation.ablation import Ablation
from depthcut.ablation.comparator import ComparedBatch
from depthcut.importance.static import static_scores
from depthcut.model.architectures import find_architecture
from depthcut.model.block_call import BlockCaller
from depthcut.model.shortage import forget
from depthcut.model.stream import DecoderStream
from depthcut.process.faults import is_out_of_memory
from depthcut.types import ResourceError, Unit
from example_run import words

OPTIONS = tiny.SHORT_RUN | {"unit": "block", "repair": "none", "calibration": "stdlib"}
pytestmark = pytest.mark.usefixtures("quick_reload")


CPU_ALLOCATOR = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
OUT_OF_MEMORY = [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), RuntimeError(CPU_ALLOCATOR)]


@pytest.fixture(autouse=True)
def _nothing_said():
    forget()


class Short:
    """Has a model's block fail for want of memory where it is given more than some sequences."""

    def __init__(self, model, most, error):
        self.calls = []
        block = model.model.layers[3].mlp

        def refuse(_, args):
            self.calls.append(len(args[0]))
            if len(args[0]) > most:
                raise error

        block.register_forward_pre_hook(refuse)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("pads", [False, True])
def test_a_batch_too_large_is_run_in_halves(capsys, error, pads):
    samples = tiny.samples(8, 12)
    if pads:
        samples.attention_mask[1, 7:] = 0
    model, plain = tiny.model(), tiny.model()
    architecture = find_architecture(model.config)
    removed = frozenset({Unit(1, "ffn"), Unit(4, "attn")})
    short = Short(model, 2, error)
    ablation = Ablation(DecoderStream(model, architecture), samples, "kl", batch_size=8)
    value = ablation(removed)
    assert max(short.calls) == 8 and short.calls.count(8) == 1 and set(short.calls[-4:]) == {2}
    assert capsys.readouterr().err == "no memory for 8 sequences at a time: they are run in parts\n"
    whole = Ablation(DecoderStream(plain, architecture), samples, "kl", batch_size=8)
    assert value == pytest.approx(whole(removed), abs=tiny.ROUNDING)
    # Cost is counted as if nothing had happened.
    assert ablation.stream.unit_evaluations == whole.stream.unit_evaluations


def test_scores_are_the_same_from_parts_of_a_batch():
    model, plain = tiny.model(), tiny.model()
    architecture = find_architecture(model.config)
    Short(model, 1, MemoryError())
    parts, _ = static_scores(DecoderStream(model, architecture), tiny.samples(4), batch_size=4)
    whole, _ = static_scores(DecoderStream(plain, architecture), tiny.samples(4), batch_size=4)
    for found, expected in zip(parts, whole, strict=True):
        assert found.values == pytest.approx(expected.values, abs=tiny.ROUNDING)


def test_too_little_memory_for_one_sequence_says_what_to_lower(model, tmp_path, monkeypatch, told):
    def run(*_):
        raise MemoryError

    given = ["prune", model, "-o", tmp_path / "out", *words(OPTIONS)]
    with monkeypatch.context() as patch:
        patch.setattr(BlockCaller, "around", run)
        lines = told(*given, code=2)
    assert "there is no memory for one sequence of 16 tokens" in lines[-1] and "--memory-budget" in lines[-1]
    told(*given, *(["--resume"] if (tmp_path / ".out.unfinished").exists() else []), code=0)


def test_a_search_that_ran_out_of_memory_goes_on(model, tmp_path, monkeypatch, told):
    calls = 0
    real = ComparedBatch.compare

    def compare(*args):
        nonlocal calls
        calls += 1
        if calls == 9:
            raise MemoryError
        return real(*args)

    given = ["prune", model, "-o", tmp_path / "out", *words(OPTIONS)]
    with monkeypatch.context() as patch:
        patch.setattr(ComparedBatch, "compare", compare)
        lines = told(*given, code=2)
    assert "there is no memory left" in lines[-1] and "with --resume goes on" in lines[-1]
    assert len((tmp_path / ".out.unfinished" / "journal.jsonl").read_text().splitlines()) == 9
    told(*given, "--resume", code=0)


def test_the_real_allocator_is_understood():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(ResourceError):
        raise ResourceError("is an input error that keeps what was found")
