"""Models that read images are loaded with their own class, pruned inside, and outside the decoder stay as they are."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import depthcut
import tiny
from depthcut.model.wrappers import blocks_of_wrapper
from depthcut.types import InputError
from fresh_reader import FreshReader
from model import multimodal

OPTIONS = tiny.SHORT_RUN
IMAGE_READER = Path(multimodal.__file__).with_name("image_reader.py")


@pytest.fixture(scope="module")
def image_reader(tmp_path_factory):
    with FreshReader(IMAGE_READER, tmp_path_factory.mktemp("modules"), torch.get_num_threads()) as reader:
        yield reader


@pytest.mark.usefixtures("read_afresh")
@pytest.mark.parametrize("name", tiny.short_and_long(multimodal.SETTINGS, ["qwen2_5_vl"]))
def test_the_decoder_is_pruned_and_all_else_kept(name, image_reader, tmp_path):
    source = multimodal.save(name, tmp_path / "dense")
    forms = [] if name in ("qwen2_5_vl", "qwen3_vl") else ["text-only"]
    result = depthcut.prune(str(source), output=tmp_path / "out", export=forms, **OPTIONS)
    assert not result.not_written

    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == json.loads((source / "config.json").read_text())["architectures"]
    text = config["text_config"]
    assert text["num_hidden_layers"] == 4
    assert len(text.get("layer_types") or [0] * 4) == 4

    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
    outside, still = (
        {key for key in held if (".layers." not in key and "per_layer" not in key) or "vis" in key}
        for held in (before, after)
    )
    assert outside == still
    assert len(outside) > 10
    for key in outside:
        assert before[key].numpy().tobytes() == after[key].numpy().tobytes(), key

    given = multimodal.image_and_text(name)
    with torch.no_grad():
        expected = result.model(**given).logits
        other = result.model(**(given | {"pixel_values": 1 - given["pixel_values"]})).logits
    assert not torch.equal(other, expected)
    save_file(given, tmp_path / "inputs.safetensors")
    words = [tmp_path / "out", tmp_path / "inputs.safetensors", tmp_path / "found.safetensors"]
    done = image_reader.run([str(IMAGE_READER), *map(str, words)])
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "found.safetensors")["logits"]
    rounding = 64 * torch.finfo(torch.float32).eps * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding)

    if forms:
        alone = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "text-only", dtype=torch.float32).eval()
        ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
        with torch.no_grad():
            torch.testing.assert_close(alone(input_ids=ids).logits, result.model(input_ids=ids).logits)


def test_single_sublayers_of_such_a_model_are_refused_before_weights_load(tmp_path):
    source = multimodal.save("gemma3", tmp_path / "dense")
    with pytest.raises(InputError, match="a gemma3 model carries its decoder inside.*--unit block or pair"):
        depthcut.prune(str(source), unit="attn", **OPTIONS)


def test_where_the_blocks_are_is_true_for_every_type():
    for name in multimodal.SETTINGS:
        made = multimodal.model(name)
        assert len(made.get_submodule(blocks_of_wrapper(made.config))) == multimodal.TEXT["num_hidden_layers"]
