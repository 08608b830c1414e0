"""The recipe for mergekit: what it says, what it refuses, and that mergekit itself makes the same tensors of it."""

import os
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

import tiny
from depthcut.export import EXPORTS, VerificationError
from depthcut.run.api import prune
from depthcut.run.apply import apply_plan
from depthcut.run.by_hand import plan_of_units
from depthcut.run.export import export_model
from depthcut.run.recipe import Recipe
from depthcut.types import InputError

SHORTGPT_LLAMA_2_7B = "21-29"
"""The nine blocks that ShortGPT removes of Llama-2-7B (arXiv 2403.03853, table 2)."""
TEXTS = {"evaluation_samples": 2, "evaluation_length": 16, "speed": False, "device": "cpu"}


pytestmark = pytest.mark.usefixtures("quick_reload")


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A tiny model of Llama-2-7B's depth."""
    return tiny.save(tmp_path_factory.mktemp("dense") / "llama", "llama", num_hidden_layers=32)


def removed(dense, units, output, repair="none", **options):
    recipe = Recipe.build(model=str(dense), repair=repair, **(TEXTS | options))
    apply_plan(recipe, lambda source: plan_of_units(source, units), output)
    return output


def test_the_slices_are_the_runs_of_kept_blocks(dense, tmp_path):
    cut = removed(dense, SHORTGPT_LLAMA_2_7B, tmp_path / "cut")
    export_model(str(cut), "mergekit", tmp_path / "recipe")
    recipe = yaml.safe_load((tmp_path / "recipe" / "mergekit.yaml").read_text())
    ranges = [piece["sources"][0]["layer_range"] for piece in recipe["slices"]]
    assert ranges == [[0, 21], [30, 32]]
    assert {piece["sources"][0]["model"] for piece in recipe["slices"]} == {str(dense)}
    assert (recipe["merge_method"], recipe["dtype"]) == ("passthrough", "float32")


@pytest.mark.readers
def test_mergekit_makes_the_same_tensors(dense, tmp_path):
    cut = removed(dense, SHORTGPT_LLAMA_2_7B, tmp_path / "cut")
    export_model(str(cut), "mergekit", tmp_path / "recipe")
    files = [tmp_path / "recipe" / "mergekit.yaml", tmp_path / "merged"]
    command = [sys.executable, "-m", "mergekit.scripts.run_yaml", *files]
    environment = os.environ | {"PYTHONPATH": os.environ["DEPTHCUT_MERGEKIT"]}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ours, theirs = load_file(cut / "model.safetensors"), {}
    for file in (tmp_path / "merged").glob("*.safetensors"):
        theirs |= load_file(file)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_what_slices_cannot_say_is_refused(dense, tmp_path):
    parts = removed(dense, "3.ffn,4.attn", tmp_path / "parts")
    with pytest.raises(InputError, match="block 3 of this model is made of parts of the dense blocks 3, 4"):
        export_model(str(parts), "mergekit", tmp_path / "out")
    lacking = removed(dense, "3.attn", tmp_path / "lacking")
    with pytest.raises(InputError, match="block 3 of this model is made of parts of the dense blocks 3; remove whole"):
        export_model(str(lacking), "mergekit", tmp_path / "out")
    with pytest.raises(InputError, match="config.json does not say which model this was made from"):
        export_model(str(dense), "mergekit", tmp_path / "out")
    short = tiny.save(tmp_path / "short", "llama")
    repaired = removed(short, "2-3", tmp_path / "repaired", repair="refit", repair_samples=64, calibration_length=32)
    with pytest.raises(InputError, match="is not the dense model's, since a repair changed it"):
        export_model(str(repaired), "mergekit", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_slices_that_do_not_give_the_model_are_found(dense, tmp_path):
    cut = removed(dense, "4-5", tmp_path / "cut")
    export_model(str(cut), "mergekit", tmp_path / "recipe")
    from depthcut.model.load import resolve

    model = resolve(str(cut)).load_model("cpu")
    file = tmp_path / "recipe" / "mergekit.yaml"
    file.write_text(file.read_text().replace("- 6", "- 7", 1))
    with pytest.raises(VerificationError, match="do not give the model"):
        EXPORTS.parse("mergekit")[1].verify(tmp_path / "recipe", model, torch.zeros(1, 1, dtype=torch.int64))


def test_it_is_written_beside_the_model(dense, tmp_path):
    options = tiny.SHORT_RUN | {"method": "shortgpt", "unit": "block", "repair": "none"}
    result = prune(str(dense), output=tmp_path / "out", export=["mergekit"], **options)
    assert (result.output / "mergekit" / "mergekit.yaml").is_file()
    assert result.not_written == ()
