"""What a checkpoint says is held against its weights before anything loads; broken files never end in a traceback."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from depthcut.calibration.local import read_objects
from depthcut.methods.budget import StoredBytes
from depthcut.model.checkpoint import check_model, known_types
from depthcut.model.device import check_device
from depthcut.model.files import check_gguf, find_gguf
from depthcut.model.load import resolve
from depthcut.process.journal import Journal
from depthcut.recipes import read_options
from depthcut.run.recipe import Recipe
from depthcut.types import InputError, Plan, Provenance, Step, Unit, UnitSize

SECONDS_AT_MOST = 60


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def model(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "model")


@pytest.fixture
def in_time():
    """Ends a test that waits for ever."""

    def fail(*_):
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(SECONDS_AT_MOST)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def change(folder, **entries):
    """Sets entries of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def told(call, *arguments):
    """The sentence of the InputError that a call ends with."""
    with pytest.raises(InputError) as error:
        call(*arguments)
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"num_hidden_layers": "6"}, "num_hidden_layers is '6' and has to be a whole number from 1 to 10000"),
        ({"num_hidden_layers": 6.5}, "num_hidden_layers is 6.5 and has to be a whole number"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None and has to be a whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True and has to be a whole number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000 and has to be a whole number from 1 to 10000"),
        ({"num_hidden_layers": 3}, "it says 3 blocks, and the files hold 6; download both again"),
        ({"num_hidden_layers": 7}, "it says 7 blocks, and the files hold 6; download both again"),
        ({"vocab_size": "512"}, "vocab_size is '512' and has to be a whole number"),
        ({"vocab_size": 0}, "vocab_size is 0 and has to be a whole number from 1"),
        ({"vocab_size": -1}, "vocab_size is -1 and has to be a whole number from 1"),
        ({"vocab_size": 10**10}, "vocab_size is 10000000000 and has to be a whole number"),
        ({"hidden_size": 2**40}, "hidden_size is 1099511627776 and has to be a whole number"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0 and has to be a whole number from 1"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3 key-value heads; give a number that divides 4"),
        ({"max_position_embeddings": -5}, "max_position_embeddings is -5 and has to be a whole number from 1"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0 and has to be a number above 0"),
        ({"rope_parameters": {"rope_theta": float("inf")}}, "rope_theta is inf and has to be a number above 0"),
        ({"layer_types": ["full_attention"] * 8}, "layer_types has 8 entries for 6 blocks; keep the first 6"),
        ({"layer_types": ["full_attention"] * 5}, "layer_types has 5 entries for 6 blocks; mend it"),
        ({"layer_types": "full_attention"}, "layer_types is 'full_attention' and has to be a list of names"),
        ({"architectures": "Llama"}, "architectures is 'Llama' and has to be a list of names"),
        (
            {"architectures": ["LlamaForTokenClassification"]},
            "depthcut prunes decoders that predict tokens (ForCausalLM)",
        ),
        ({"model_type": None}, "does not say what the model is: model_type is None"),
        ({"model_type": "t5"}, "they have an encoder beside the decoder"),
        ({"model_type": "bert"}, "they are encoders, which predict no next token"),
        ({"model_type": "zamba2"}, "its blocks share attentions"),
        ({"model_type": "vit"}, "has no causal language model of that type; give another model"),
        ({"model_type": "nonsense"}, "has no causal language model of that type; give another model"),
    ],
    ids=str,
)
def test_what_a_configuration_cannot_say(model, entries, words):
    change(model, **entries)
    assert words in told(check_model, str(model))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"intermediate_size": 40}, "it makes model.layers.0.mlp.gate_proj.weight 40 x 32, and the files hold 48 x 32"),
        ({"vocab_size": 5000}, "it makes model.embed_tokens.weight 5000 x 32, and the files hold 259 x 32"),
        ({"hidden_act": "nonsense"}, "config.json: hidden_act is 'nonsense', which cannot be read (KeyError"),
        ({"hidden_act": None}, "config.json: hidden_act is None, which cannot be read"),
        ({"dtype": "float99"}, "config.json: dtype is 'float99', which cannot be read"),
        ({"torch_dtype": "float99", "dtype": None}, "config.json: torch_dtype is 'float99', which cannot be read"),
        ({"dtype": 16}, "config.json: dtype is 16, in which no model is computed; write float32, bfloat16 or float16"),
        ({"dtype": "int8"}, "config.json: dtype is int8, in which no model is computed"),
        ({"rope_parameters": "fast"}, "config.json: rope_parameters is 'fast', which cannot be read"),
        (
            {"rope_parameters": {"rope_type": "nonsense", "rope_theta": 1e4}},
            "config.json: rope_parameters.rope_type is 'nonsense', which cannot be read",
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": "x"}},
            "config.json: rope_parameters.rope_type is 'linear', which cannot be read (unsupported operand",
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}},
            "Missing required keys in `rope_parameters` for 'rope_type'='linear': {'factor'}",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": "x"}},
            "config.json: rope_parameters.rope_theta is 'x', which cannot be read",
        ),
        ({"rope_scaling": {"type": "nonsense", "factor": 2.0}}, "config.json: rope_scaling.type is 'nonsense'"),
        ({"attn_implementation": "nonsense"}, "config.json: attn_implementation is 'nonsense', which cannot be read"),
        ({"hidden_size": 30, "head_dim": None}, "config.json: hidden_size is 30, which cannot be read"),
        ({"head_dim": 5}, "config.json: head_dim is 5, which cannot be read"),
        ({"pad_token_id": 10**6}, "config.json: pad_token_id is 1000000, which cannot be read"),
        ({"tie_word_embeddings": "no"}, "config.json: tie_word_embeddings is 'no', which cannot be read"),
        ({"quantization_config": 5}, "config.json: quantization_config is 5, which cannot be read"),
    ],
    ids=str,
)
def test_what_the_model_of_the_configuration_shows(model, entries, words):
    change(model, **entries)
    assert words in told(resolve, str(model))


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "\x00"])
def test_a_configuration_that_is_none(model, text):
    (model / "config.json").write_text(text)
    assert f"cannot read the configuration of {model}: config.json" in told(check_model, str(model))


def test_prediction_layers_behind_the_last_block_are_no_blocks(model):
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.6.mlp.up_proj.weight"] = torch.zeros(48, 32)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    assert "says 6 blocks, and the files hold 7" in told(check_model, str(model))
    change(model, num_nextn_predict_layers=1)
    check_model(str(model))


def test_a_model_without_a_head_is_what_its_class_says(model):
    tensors = load_file(model / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    assert "lack lm_head.weight, which would be made up at random" in told(resolve(str(model)).load_model)
    change(model, architectures=["LlamaModel"], tie_word_embeddings=False)
    check_model(str(model))
    assert resolve(str(model)).load_model().get_output_embeddings() is None


def test_an_adapter_is_no_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    sentence = told(check_model, str(tmp_path))
    assert "holds an adapter of org/base, not a model; give the model, and the adapter to be merged into it" in sentence
    assert sentence.endswith(f"org/base --adapter {tmp_path}")


@pytest.mark.parametrize("name", ["m" * 5000, "~nosuchuser/x", "a\0b", "x/" * 3000])
def test_names_that_no_file_can_have(name):
    assert len(sentence := told(resolve, name)) < 500
    assert "there is no model at" in sentence
    assert "there is no model at" in told(find_gguf, name)


@pytest.mark.parametrize("part", [1, 2])
def test_a_part_of_a_gguf(tmp_path, part):
    file = tmp_path / f"model-0000{part}-of-00002.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1))
    assert told(check_gguf, file) == (
        f"{file} is part {part} of 2 of a GGUF, which depthcut apply --to gguf reads by its first "
        "(model-00001-of-00002.gguf); to search, join them with llama.cpp: llama-gguf-split --merge "
        "model-00001-of-00002.gguf joined.gguf"
    )


def test_a_gguf_without_tensors(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 20))
    assert "holds no tensors, only what describes them" in told(check_gguf, file)


def test_a_device_without_numbers():
    assert "the device 'meta' holds no numbers; use auto, cpu" in told(check_device, "meta")


@pytest.mark.parametrize("line", ['{"text": ' + "9" * 5000 + "}", "[" * 100_000])
def test_lines_that_no_reader_takes(tmp_path, line):
    file = tmp_path / "rows.jsonl"
    file.write_text(line + "\n")
    assert f"line 1 of {file} holds a number of thousands of digits or is nested too deeply" in told(
        lambda: list(read_objects(file))
    )


def test_a_seed_that_no_generator_takes():
    assert "seed: Input should be less than 4294967296" in told(lambda: Recipe.build(model="m", remove="2", seed=2**32))


@pytest.mark.parametrize("digits", [400, 5000])
@pytest.mark.parametrize("option", ["remove", "budget", "max_increase", "memory_budget"])
def test_counts_of_many_digits(digits, option):
    values = {"budget": "bytes=", "max_increase": "kl="}
    given = {"remove": "2"} if option == "memory_budget" else {}
    value = values.get(option, "") + "9" * digits

    def pose():
        recipe = Recipe.build(model="m", **given, **{option: value})
        recipe.check()
        assert recipe.parsed_budget.of_weights(10, StoredBytes(20, 2))

    with suppress(InputError):
        pose()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes that have names")
@pytest.mark.usefixtures("in_time")
def test_pipes_are_not_waited_for(model, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    words = "is no regular file but a pipe or device"
    assert words in told(Plan.from_file, pipe)
    assert words in told(read_options, pipe)
    assert words in told(lambda: list(read_objects(pipe)))
    assert words in told(Journal, pipe, {})
    for name in ("config.json", "model.safetensors"):
        (model / name).unlink()
        os.mkfifo(model / name)
        assert words in told(check_model, str(model))


def plan(**changes):
    provenance = Provenance(
        source="m", format="directory", digest="d", model_type="llama", num_blocks=6, dtype="float32"
    )
    steps = (Step(remove=(Unit(1, "attn"), Unit(1, "ffn")), objective=0.1, applied=True),)
    values = {"model": provenance, "calibration": None, "method": "random", "unit": "block", "budget": "1"}
    return provenance, Plan(**(values | {"steps": steps} | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"steps": (Step(remove=(Unit(1, "ffn"),), objective=float("inf")),)},
            "step 1 of the plan has the objective inf",
        ),
        ({"steps": (Step(remove=(Unit(6, "ffn"),)),)}, "the plan names 6.ffn, and the model has blocks 0 to 5"),
        ({"steps": (Step(remove=(Unit(1, "ffn"),)),) * 2}, "the plan removes 1.ffn twice"),
    ],
)
def test_plans_that_no_search_makes(changes, words):
    given, made = plan(**changes)
    assert words in told(made.require_made_for, given)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (
            {"0.attn": {"parameters": -1, "kv_bytes_per_token": 0}},
            "unit_sizes.0.attn.parameters: Input should be greater",
        ),
        ({"zero": {"parameters": 1, "kv_bytes_per_token": 0}}, "unit_sizes.zero.[key]: String should match pattern"),
    ],
)
def test_sizes_that_no_model_has(tmp_path, sizes, words):
    _, made = plan()
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(json.loads(made.to_json()) | {"unit_sizes": sizes}))
    assert words in told(Plan.from_file, file)


def test_sizes_of_whole_blocks_are_read():
    _, made = plan(unit_sizes={"0.block": UnitSize(parameters=1, kv_bytes_per_token=0)})
    assert Plan.model_validate_json(made.to_json()) == made


def test_a_plan_of_another_number_of_blocks():
    given, made = plan()
    made.require_made_for(given)
    wrong = made.model_copy(update={"model": given.model_copy(update={"num_blocks": 9})})
    assert "the plan says that m has 9 blocks, and it has 6" in told(wrong.require_made_for, given)


SCRIPT = """
import sys
from depthcut import cli
try: cli.main()
except SystemExit as ended: print(ended.code, *(name in sys.modules for name in ("torch", "transformers")))
"""


@pytest.mark.parametrize("given", ["directory", "hub", "recipe"])
def test_a_refusal_imports_neither_torch_nor_transformers(model, tmp_path, given):
    change(model, model_type="vit")
    name = str(model)
    if given == "hub":
        # As huggingface_hub keeps what it has downloaded, here of a branch that the command names after the model.
        name, revision = "someone/vision", "0" * 40
        kept = tmp_path / "cache/models--someone--vision"
        (kept / "refs").mkdir(parents=True)
        (kept / "refs/of-ours").write_text(revision)
        shutil.copytree(model, kept / "snapshots" / revision)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"model": name, "remove": "2"}))
    options = {"recipe": ["run", str(recipe)], "hub": ["prune", name, "--revision", "of-ours", "--remove", "2"]}
    words = [*options.get(given, ["prune", name, "--remove", "2"]), "-o", str(tmp_path / "out")]
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", SCRIPT, *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.stdout.split() == ["2", "False", "False"], ended.stderr
    assert "models of type 'vit' cannot be pruned: transformers" in ended.stderr
    assert "has no causal language model of that type; give another model" in ended.stderr


def test_types_are_known_as_transformers_knows_them():
    from transformers.models.auto import modeling_auto

    decoders = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    assert known_types() == {*decoders, *modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
