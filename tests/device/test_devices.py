"""Whole runs on a stand-in accelerator find what they find on the CPU, and no tensor is made on the wrong device.

The stand-in refuses operations on tensors of different devices, as a GPU does, and computes with the CPU's kernels.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from device.checks import CHECKS, IN_FLOAT32
from device.processes import need_compiler, run_on
from device.scenarios import SCENARIOS, WRITTEN
from device.shortages import SHORTAGES

pytestmark = pytest.mark.device

HERE = Path(__file__).parent
ROUNDING = 64 * torch.finfo(torch.float32).eps
"""Of sums over a few dozen float32 terms, in another order where the CPU has a fused kernel that the stand-in lacks."""


SHORT = ("default", WRITTEN, "experts", "ceiling", "questions", "self", "low-rank", "lora")
"""Scenarios of every test run; the others are long."""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the short scenarios and the checks found, by device, and the folder of the weights."""
    return on_both(tmp_path_factory, [*SHORT, *CHECKS, *SHORTAGES])


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """What all other scenarios found."""
    return on_both(tmp_path_factory, [name for name in SCENARIOS if name not in SHORT])


def on_both(tmp_path_factory, names):
    """What is found on the CPU and on the stand-in, by device."""
    need_compiler()
    runs = {}
    for device in ("cpu", "standin"):
        folder = tmp_path_factory.mktemp(device)
        child = run_on(device, HERE / "scenarios.py", device, folder, *names)
        assert child.returncode == 0, child.stderr[-2000:]
        runs[device] = json.loads((folder / "found.json").read_text()), folder
    return runs


@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in SCENARIOS]
)
def test_a_run_finds_on_an_accelerator_what_it_finds_on_the_cpu(request, name):
    runs = request.getfixturevalue("found" if name in SHORT else "others")
    (on_cpu, cpu_folder), (on_device, device_folder) = runs["cpu"], runs["standin"]
    assert "failed" not in on_cpu[name], on_cpu[name]["failed"]
    assert "failed" not in on_device[name], on_device[name]["failed"]
    expected, given = on_cpu[name], on_device[name]
    assert (expected.pop("device"), given.pop("device")) == ("cpu", "standin:0")
    assert_alike(given, expected)
    weights, there = (load_file(folder / f"{name}.safetensors") for folder in (cpu_folder, device_folder))
    assert weights.keys() == there.keys()
    for tensor in weights:
        torch.testing.assert_close(there[tensor], weights[tensor], rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("name", [*CHECKS, *SHORTAGES])
def test_what_a_device_computes_is_what_the_cpu_does(found, name):
    on_cpu, on_device = (found[device][0][name] for device in ("cpu", "standin"))
    assert "failed" not in on_cpu, on_cpu["failed"]
    assert "failed" not in on_device, on_device["failed"]
    assert_alike(on_device, on_cpu, 1000 * torch.finfo(torch.float32).eps if name == IN_FLOAT32 else ROUNDING)


def assert_alike(given, expected, tolerance=ROUNDING):
    """Equal but for the rounding of numbers."""
    if isinstance(expected, dict):
        assert given.keys() == expected.keys()
        for key in expected:
            assert_alike(given[key], expected[key], tolerance)
    elif isinstance(expected, list):
        assert len(given) == len(expected)
        for one, other in zip(given, expected, strict=True):
            assert_alike(one, other, tolerance)
    elif isinstance(expected, float):
        assert given == pytest.approx(expected, rel=tolerance, abs=tolerance)
    else:
        assert given == expected


@pytest.mark.usefixtures("found")
def test_a_tensor_on_the_wrong_device_is_noticed():
    # What the comparison above rests on: else a tensor made on the CPU by mistake would go unnoticed.
    child = run_on("standin", "-c", "import torch; torch.ones(2, device='standin') + torch.ones(2)")
    assert child.returncode == 1 and "at least two devices, standin:0 and cpu!" in child.stderr
