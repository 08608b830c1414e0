"""What is computed in and what is written are two matters; what is measured is what is written."""

import json

import pytest
import torch
from safetensors.torch import load_file

import depthcut
import tiny
from depthcut.export.hf import write_model
from depthcut.model import precision
from depthcut.model.load import resolve
from depthcut.model.paging import Pager
from depthcut.model.precision import computing_dtype
from depthcut.run.export import export_model

OPTIONS = tiny.SHORT_RUN
pytestmark = pytest.mark.usefixtures("read_afresh")


@pytest.fixture
def half(tmp_path):
    """A checkpoint in bfloat16."""
    folder = tiny.save(tmp_path / "dense")
    export_model(str(folder), "hf", tmp_path / "half", dtype="bfloat16")
    return tmp_path / "half"


@pytest.fixture
def slow(monkeypatch):
    """A processor without instructions for 16 bits."""
    monkeypatch.setattr(precision, "is_slow", lambda dtype: True)


@pytest.mark.usefixtures("slow")
def test_a_bfloat16_checkpoint_is_computed_in_float32_and_written_in_bfloat16(half, tmp_path, capsys):
    result = depthcut.prune(str(half), output=tmp_path / "out", method="shortgpt", unit="block", **OPTIONS)
    assert result.model.dtype == torch.float32
    assert "computing in float32, in which this processor is faster; written in bfloat16" in capsys.readouterr().err
    assert (result.plan.model.dtype, result.plan.model.written_dtype) == ("float32", "bfloat16")

    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    before, after = (load_file(folder / "model.safetensors") for folder in (half, tmp_path / "out"))
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    kept = sorted(set(range(tiny.NUM_BLOCKS)) - {unit.layer for unit in result.plan.removed})
    for name, tensor in after.items():
        source = name
        if ".layers." in name:
            index = name.split(".")[2]
            source = name.replace(f".layers.{index}.", f".layers.{kept[int(index)]}.")
        assert before[source].view(torch.int16).equal(tensor.view(torch.int16)), name


@pytest.mark.usefixtures("slow")
def test_repaired_weights_are_measured_as_they_are_written(half, tmp_path):
    options = OPTIONS | {"calibration_samples": 16, "calibration_length": 48}
    result = depthcut.prune(str(half), output=tmp_path / "out", **options)
    assert result.repairs[0].kept
    loaded = resolve(str(tmp_path / "out"), dtype="float32").load_model("cpu")
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, result.model(input_ids=ids).logits)
    assert all(torch.equal(p, p.bfloat16().float()) for p in result.model.parameters())


@pytest.mark.long
def test_the_written_precision_can_be_chosen(tmp_path):
    folder = tiny.save(tmp_path / "dense")
    for save_dtype, expected in (("auto", torch.float32), ("bfloat16", torch.bfloat16)):
        options = OPTIONS | {"method": "shortgpt", "unit": "block", "save_dtype": save_dtype}
        depthcut.prune(str(folder), output=tmp_path / save_dtype, **options)
        assert {t.dtype for t in load_file(tmp_path / save_dtype / "model.safetensors").values()} == {expected}


def test_what_the_written_precision_cannot_hold_stays_as_it_is():
    model = tiny.model()
    precision.write_in(model, torch.bfloat16)
    odd = model.model.layers[0].input_layernorm.weight
    odd.data = torch.full_like(odd.data, 1 + 2**-20)
    with precision.in_written_dtype(model):
        assert odd.dtype == torch.float32
        assert model.model.layers[1].input_layernorm.weight.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_float32_is_taken_where_16_bits_are_slow_and_memory_suffices(monkeypatch):
    for slow, device, room, expected in (
        (True, "cpu", 400, torch.float32),
        (True, "cpu", 399, torch.bfloat16),
        (True, "meta", 400, torch.bfloat16),
        (False, "cpu", 400, torch.bfloat16),
    ):
        monkeypatch.setattr(precision, "is_slow", lambda dtype, slow=slow: slow)
        assert computing_dtype(torch.bfloat16, device, 100, room) == expected
    assert computing_dtype(torch.float32, "cpu", 100, 400) == torch.float32


def test_slow_is_what_takes_twice_as_long(monkeypatch):
    seconds = {torch.float32: 1.0, torch.bfloat16: 2.1, torch.float16: 1.9}
    monkeypatch.setattr(precision, "_product_seconds", seconds.__getitem__)
    precision.is_slow.cache_clear()
    try:
        assert precision.is_slow(torch.bfloat16) and not precision.is_slow(torch.float16)
    finally:
        precision.is_slow.cache_clear()


def test_a_paged_model_is_written_as_it_is_computed_and_says_so(tmp_path):
    source = resolve(str(tiny.save(tmp_path / "dense")), save_dtype="bfloat16")
    assert source.written_dtype == torch.bfloat16
    assert source.written_as_computed().written_dtype == torch.float32
    (tmp_path / "out").mkdir()
    write_model(source.load_model("cpu", Pager(2**20)), tmp_path / "out")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float32}
