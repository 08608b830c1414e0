"""Two ranks, each on a stand-in accelerator of its own, find one process's plan."""

import json
from pathlib import Path

import pytest

import depthcut
from device.processes import need_compiler, run_on
from device.test_paged import llama

pytestmark = [pytest.mark.device, pytest.mark.long]

HERE = Path(__file__).parent
ROUNDING = 64 * 2**-23
OPTIONS = {
    "unit": "block",
    "remove": "2",
    "method": "greedy,strategy=exhaustive",
    "calibration": "stdlib",
    "calibration_samples": 8,
    "calibration_length": 24,
    "batch_size": 2,
    "evaluation_samples": 2,
    "evaluation_length": 24,
    "repair": "none",
    "dtype": "float32",
}


@pytest.mark.parametrize("limit", [None, "1200000B"])
def test_two_ranks_on_two_devices_find_one_processs_plan(tmp_path, limit):
    """Also where neither holds the model: then both map the one copy of its weights that the host has."""
    model = tmp_path / "model"
    weights = llama(model, hidden_size=64, intermediate_size=176, num_hidden_layers=6)
    assert limit is None or weights > int(limit[:-1])
    alone = depthcut.prune(str(model), device="cpu", speed=False, **OPTIONS)
    limits = [] if limit is None else [f"--device-memory={limit}"]
    options = [*limits] + [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    launch += ["--rdzv-endpoint", "localhost:0", str(HERE / "rank.py"), str(tmp_path)]
    need_compiler()
    job = run_on(
        "standin", *launch, "prune", model, "-o", tmp_path / "out", "--device", "standin", "--no-speed", *options
    )
    assert job.returncode == 0, job.stderr[-3000:]
    steps = json.loads((tmp_path / "out" / "plan.json").read_text())["steps"]
    expected = [step.model_dump(mode="json") for step in alone.plan.steps]
    assert [step["remove"] for step in steps] == [step["remove"] for step in expected]
    assert [step["objective"] for step in steps] == pytest.approx(
        [step["objective"] for step in expected], rel=ROUNDING, abs=ROUNDING
    )
    ranks = [json.loads((tmp_path / f"rank-{place}.json").read_text()) for place in range(2)]
    told = {"used elsewhere": 0} if limit is None else {"used elsewhere": 0, "in the model's own files": True}
    assert ranks == [told | {"device": f"standin:{place}"} for place in range(2)]
