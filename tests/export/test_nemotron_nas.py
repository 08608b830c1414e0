"""Engines read exactly what block_configs says: every field, padding and index that is wrong must be noticed."""

import copy
import io
import json
import pickle
import subprocess
import sys
from contextlib import redirect_stdout
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

import tiny
from depthcut.export import EXPORTS, VerificationError, nemotron_nas_check, second_reader
from depthcut.export.configuration_decilm import DeciLMConfig
from depthcut.model.architectures import find_architecture
from depthcut.surgery import apply
from depthcut.types import InputError, Unit

# The first attention and the last FFN are among them; blocks 2 and 4 are whole, so that indices can be mistaken.
REMOVED = [Unit.parse(name) for name in ("0.attn", "1.ffn", "3.attn", "5.ffn")]
FAMILIES = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": None, "tie_word_embeddings": False},
    "qwen2": {"use_sliding_window": False, "layer_types": None, "num_key_value_heads": 1},
}
PADDED = 256
FORM = EXPORTS.find("nemotron-nas").make()


@pytest.fixture(autouse=True)
def quick_read(monkeypatch, tmp_path_factory):
    """Lets a written model be read by the same script in this process: a fresh one takes seconds to start."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
    monkeypatch.delenv("DEPTHCUT_VLLM_PYTHON", raising=False)

    def run(command, **_):
        output = io.StringIO()
        try:
            with redirect_stdout(output):
                nemotron_nas_check.main(*command[-2:])
        except (OSError, RuntimeError, AttributeError, TypeError) as error:
            return subprocess.CompletedProcess(command, 1, "", f"{type(error).__name__}: {error}")
        return subprocess.CompletedProcess(command, 0, output.getvalue(), "")

    monkeypatch.setattr(second_reader, "subprocess", SimpleNamespace(run=run))


def pruned(family="llama", removed=REMOVED, **changes):
    dense = tiny.model(family, vocab_size=tiny.BYTE_VOCABULARY, **(FAMILIES[family] | changes))
    return apply(dense, find_architecture(dense.config), removed)


def write(model, folder):
    folder.mkdir(exist_ok=True)
    FORM.check(model.config)
    FORM.write(model, tiny.tokenizer(), folder)
    return model, folder


def verify(model, folder):
    FORM.verify(folder, model, tiny.samples(num_samples=1).input_ids)


@pytest.fixture
def written(tmp_path):
    return write(pruned(), tmp_path / "written")


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def change_config(folder, change):
    config = config_of(folder)
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "removed",
    ["", "0.attn", "5.ffn", "2.attn 2.ffn", "0.attn 1.ffn 3.attn 5.ffn", "0.ffn 1.ffn 2.ffn 3.ffn 4.ffn 5.ffn"],
    ids=lambda text: text or "nothing",
)
def test_what_engines_read_is_the_model_in_memory(family, removed, tmp_path):
    verify(*write(pruned(family, [Unit.parse(name) for name in removed.split()]), tmp_path / "written"))


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True, "mlp_bias": True},
        {"num_key_value_heads": 4},
        {"hidden_size": 64, "intermediate_size": 512, "head_dim": 16},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}},
    ],
    ids=lambda changes: "+".join(changes),
)
def test_every_llama_of_the_family_is_held(changes, tmp_path):
    verify(*write(pruned(**changes), tmp_path / "written"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_agrees_within_its_rounding(dtype, tmp_path):
    verify(*write(pruned().to(dtype), tmp_path / "written"))


def test_it_is_read_in_a_fresh_process(monkeypatch, written):
    monkeypatch.undo()
    verify(*written)


def test_block_configs_say_what_there_is(written):
    config = config_of(written[1])
    assert config["model_type"] == "nemotron-nas"
    assert config["architectures"] == ["DeciLMForCausalLM"]
    assert config["auto_map"] == {"AutoConfig": "configuration_decilm.DeciLMConfig"}
    assert len(config["block_configs"]) == config["num_hidden_layers"] == tiny.NUM_BLOCKS
    whole = {"no_op": False, "replace_with_linear": False, "sparsify": None}
    rest = {"num_sink_tokens": None, "unshifted_sink": False, "use_prefill_window_in_sink_attention": False}
    # 4 heads share 2 keys; 1.5 * 256 / 32 = 12.
    assert config["block_configs"][0] == {
        "attention": whole | rest | {"n_heads_in_group": 2, "window_length": None},
        "ffn": whole | {"ffn_mult": 12.0, "intermediate_size": PADDED},
    }
    attention, ffn = ([block[kind]["no_op"] for block in config["block_configs"]] for kind in ("attention", "ffn"))
    assert attention == [False, False, False, True, False, False]
    assert ffn == [False, True, False, False, False, True]
    assert config["block_configs"][3]["attention"]["n_heads_in_group"] is None
    assert config["block_configs"][1]["ffn"] == whole | {"no_op": True, "ffn_mult": None}


def test_tensors_of_absent_sublayers_and_their_norms_are_left_out(written):
    names = load_file(written[1] / "model.safetensors").keys()
    assert not [name for name in names if name.startswith(("model.layers.1.mlp", "model.layers.1.post_attention"))]
    assert not [name for name in names if name.startswith(("model.layers.3.self_attn", "model.layers.3.input_lay"))]
    assert "lm_head.weight" not in names


def test_the_first_attention_stays_with_zero_weights(written):
    tensors = load_file(written[1] / "model.safetensors")
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        assert not tensors[f"model.layers.0.self_attn.{name}.weight"].any()


def test_the_first_attention_is_as_it_was_where_it_was_not_removed(tmp_path):
    model, folder = write(pruned(removed=REMOVED[1:]), tmp_path / "written")
    found = load_file(folder / "model.safetensors")["model.layers.0.self_attn.o_proj.weight"]
    assert torch.equal(found, model.state_dict()["model.layers.0.self_attn.o_proj.weight"])


def test_ffns_are_padded_with_zeros_to_the_size_engines_compute(written):
    tensors = load_file(written[1] / "model.safetensors")
    for name, size in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
        tensor = tensors[f"model.layers.2.mlp.{name}.weight"]
        kept, added = tensor.split([48, PADDED - 48], dim=size)
        assert kept.any()
        assert not added.any()


def test_qwen2_gets_a_zero_bias_on_every_kept_attention_output(tmp_path):
    _, folder = write(pruned("qwen2"), tmp_path / "written")
    assert config_of(folder)["attention_bias"] is True
    biases = {name: bias for name, bias in load_file(folder / "model.safetensors").items() if "o_proj.bias" in name}
    assert sorted(biases) == [f"model.layers.{index}.self_attn.o_proj.bias" for index in (0, 1, 2, 4, 5)]
    assert not any(bias.any() for bias in biases.values())


def test_the_plan_of_the_removal_comes_along(tmp_path):
    model = pruned()
    model.config.depthcut = {"removed": ["0.attn"]}
    _, folder = write(model, tmp_path / "written")
    assert config_of(folder)["depthcut"] == {"removed": ["0.attn"]}
    assert (folder / "tokenizer.json").is_file()
    assert not list(folder.glob("*.bin"))


def take_first_attention_out(config):
    config["block_configs"][0]["attention"] = config["block_configs"][3]["attention"]


def set_group(config):
    for block in config["block_configs"]:
        block["attention"]["n_heads_in_group"] = 1


def set_unpadded(config):
    for block in config["block_configs"]:
        block["ffn"]["ffn_mult"] = 1.5 * 600 / 32


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (take_first_attention_out, "its first block has no attention, which vLLM cannot run"),
        (set_group, r"k_proj\.weight is \(16, 32\) in torch.float32, not \(32, 32\)"),
        (set_unpadded, r"mlp\.gate_proj\.weight is \(256, 32\) in torch.float32, not \(768, 32\)"),
        (lambda config: config["block_configs"].pop(), "block_configs has 5 entries for 6 blocks"),
        (lambda config: config["block_configs"].insert(2, config["block_configs"].pop(1)), "lacks the tensor .*1.mlp"),
        (lambda config: config["block_configs"][2]["ffn"].update(ffn_mult=24.0), "its blocks have different sizes"),
        (lambda config: config.update(tie_word_embeddings=False), "lacks the tensor lm_head.weight"),
        (lambda config: config["block_configs"][2]["attention"].pop("no_op"), "AttributeError"),
    ],
)
def test_a_wrong_configuration_is_noticed(written, change, problem):
    change_config(written[1], change)
    with pytest.raises(VerificationError, match=f"cannot read the written model: .*{problem}"):
        verify(*written)


def swap_blocks(tensors):
    for name in [name for name in tensors if name.startswith("model.layers.2.")]:
        other = name.replace("layers.2.", "layers.4.")
        tensors[name], tensors[other] = tensors[other], tensors[name]


def fill_padding(tensors):
    for name, tensor in tensors.items():
        if ".2.mlp." in name:
            (tensor[:, 48:] if "down" in name else tensor[48:]).fill_(0.3)


def fill_first_attention(tensors):
    for name in ("input_layernorm", "self_attn.v_proj", "self_attn.o_proj"):
        tensors[f"model.layers.0.{name}.weight"].fill_(0.1)


@pytest.mark.parametrize("change", [swap_blocks, fill_padding, fill_first_attention])
def test_tensors_that_change_answers_are_noticed(written, change):
    change_tensors(written[1], change)
    with pytest.raises(VerificationError, match="a stock Llama filled from block_configs finds a loss of"):
        verify(*written)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda tensors: tensors.pop("model.layers.4.self_attn.k_proj.weight"), r"lacks the tensor .*\.4\.self_attn"),
        (lambda tensors: tensors.update({"model.layers.1.mlp.up_proj.weight": torch.ones(2)}), "holds beside its own"),
    ],
)
def test_a_missing_or_foreign_tensor_is_named(written, change, problem):
    change_tensors(written[1], change)
    with pytest.raises(VerificationError, match=f"cannot read the written model: it {problem}"):
        verify(*written)


def test_a_missing_output_bias_is_noticed(tmp_path):
    model, folder = write(pruned("qwen2"), tmp_path / "written")
    change_tensors(folder, lambda tensors: tensors.pop("model.layers.4.self_attn.o_proj.bias"))
    with pytest.raises(VerificationError, match=r"lacks the tensor model\.layers\.4\.self_attn\.o_proj\.bias"):
        verify(model, folder)


def test_the_configuration_code_is_needed(written):
    (written[1] / "configuration_decilm.py").unlink()
    with pytest.raises(VerificationError, match="cannot read the written model: .*configuration_decilm"):
        verify(*written)


def test_the_configuration_is_json_and_has_attributes(written):
    config = DeciLMConfig(**config_of(written[1]))
    for one in (config, copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert one.block_configs[3].attention.no_op is True
        assert one.block_configs[2].ffn.intermediate_size == PADDED
        assert not hasattr(one.block_configs[2].ffn, "hidden_act")
        assert json.loads(json.dumps(one.to_dict()["block_configs"])) == config_of(written[1])["block_configs"]
    assert DeciLMConfig().block_configs == []


def test_the_configuration_survives_being_written_again(written, tmp_path):
    config = AutoConfig.from_pretrained(written[1], trust_remote_code=True)
    config.save_pretrained(tmp_path / "again")
    assert config_of(tmp_path / "again")["block_configs"] == config_of(written[1])["block_configs"]


def test_the_configuration_code_needs_transformers_alone(written):
    script = "import configuration_decilm, sys; print('depthcut' in sys.modules)"
    command = [sys.executable, "-c", script]
    child = subprocess.run(command, cwd=written[1], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("gemma3_text", {}, "it holds models of type llama, mistral, qwen2, not gemma3_text"),
        ("qwen3", {}, "not qwen3"),
        ("granite", {}, "not granite"),
        ("qwen2", {}, "this model's attention slides"),
        ("mistral", {"sliding_window": 32}, "this model's attention slides"),
        ("llama", {"hidden_act": "gelu"}, "engines compute its FFNs with silu, not gelu"),
    ],
)
def test_what_engines_cannot_take_is_refused_with_what_works(family, changes, reason):
    dense = tiny.model(family, **changes)
    with pytest.raises(InputError, match=f"the format nemotron-nas cannot hold this model: .*{reason}; .*use --to hf"):
        FORM.check(dense.config)
    model = apply(dense, find_architecture(dense.config), [Unit(3, "attn")])
    with pytest.raises(InputError, match=f"{reason}; use --to zeroed, which every engine runs .* blocks or pairs"):
        FORM.check(model.config)


def test_a_window_as_long_as_the_context_is_none():
    FORM.check(tiny.config("mistral", sliding_window=64))
