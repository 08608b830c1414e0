"""FSDP divides the weights of a healing among ranks: it trains them to what one process does."""

from pathlib import Path

import pytest
import torch
from jobs import torchrun
from safetensors.torch import load_file

AS_ACCELERATE_SETS = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}


@pytest.mark.long
def test_weights_that_fsdp_divides_train_to_what_one_process_trains(tmp_path, monkeypatch):
    script = Path(__file__).with_name("divided.py")
    for name in ("whole", "divided"):
        (tmp_path / name).mkdir()
        for variable, value in AS_ACCELERATE_SETS.items() if name == "divided" else ():
            monkeypatch.setenv(variable, value)
        job = torchrun(1 if name == "whole" else 2, [tmp_path / name], script=[script])
        _, errors = job.communicate(timeout=300)
        assert job.returncode == 0, errors
    before = load_file(tmp_path / "whole" / "before.safetensors")
    for repair in ("partial", "lora"):
        whole, divided = (load_file(tmp_path / name / f"{repair}.safetensors") for name in ("whole", "divided"))
        changes = {name: values - before[name] for name, values in whole.items() if not values.equal(before[name])}
        assert len(changes) >= 2 * 7
        for name, change in changes.items():
            # Adam divides by the root of what it has seen, so that the rounding of small gradients is not small.
            tolerance = 1e-2 * float(change.abs().max())
            torch.testing.assert_close(divided[name] - before[name], change, rtol=0, atol=tolerance)
