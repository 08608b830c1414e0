"""The benchmarks for a GPU run where there is none: their arithmetic is torch's count, and what they time is solved."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import gpu
import moments

TOY = ["--device", "cpu", "--toy", "--dtype", "float32", "--samples", "2", "--length", "16", "--candidates", "4"]


@pytest.mark.parametrize("run", ["1b", "paged"])
def test_seconds_a_candidate_stand_beside_its_arithmetic(tmp_path, monkeypatch, run):
    counter = FlopCounterMode(display=False)
    evaluate = gpu.Ablation.evaluate

    def counted(self, sets):
        if len(sets) == 1:
            return evaluate(self, sets)
        with counter:
            return evaluate(self, sets)

    monkeypatch.setattr(gpu.Ablation, "evaluate", counted)
    output = tmp_path / "gpu.json"
    gpu.main([*TOY, "--runs", run, "--peak", "0.5", "--memory", "8GB", "--output", str(output)])
    [row] = json.loads(output.read_text())["rows"]
    assert row["candidates"] == 4 and row["seconds a candidate"] > 0
    # Running the base on to where candidates leave it is beside them.
    assert 1e12 * row["TFLOP a candidate"] == pytest.approx(counter.get_total_flops() / 4, rel=0.3)
    share = row["TFLOP a candidate"] / row["seconds a candidate"] / 0.5
    assert row["share of the data sheet"] == pytest.approx(share, abs=0.001 + 0.02 * share)


def test_what_is_timed_is_a_map_that_was_solved(tmp_path):
    output = tmp_path / "moments.json"
    sizes = ["--width", "32", "--targets", "8", "--tokens", "512", "--batch", "64"]
    moments.main(["--device", "cpu", *sizes, "--output", str(output)])
    [row] = json.loads(output.read_text())["rows"]
    assert row["error left"] < 0.9 and row["dtype"] == str(torch.float64)
