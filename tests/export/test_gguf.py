"""A GGUF must hold the model as llama.cpp wants it: read back by the `gguf` package's reader, which is not ours."""

import shutil
import stat

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf_models import LLAMA3, REGULAR, SPECIAL, SUBLAYERS, form, make
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import tiny
from depthcut.export import VerificationError
from depthcut.export.gguf import convert, engine, layout
from depthcut.types import InputError


@pytest.fixture(autouse=True)
def no_engine(monkeypatch):
    """These tests look at the file; those of the engine have their own module."""
    monkeypatch.setattr(engine, "installed", lambda: False)


def write(model, folder, tensor_type=None):
    exporter = form(tensor_type)
    exporter.check(model.config)
    folder.mkdir(exist_ok=True)
    exporter.write(model, tiny.tokenizer(), folder)
    return next(folder.glob("*.gguf"))


def verify(model, folder, tensor_type=None):
    form(tensor_type).verify(folder, model, tiny.samples(num_samples=1).input_ids)


def read(path):
    """Metadata as Python values, and tensors as float arrays, rows first."""
    reader = gguf.GGUFReader(path)
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    tensors = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        for tensor in reader.tensors
    }
    return metadata, tensors, {tensor.name: tensor.tensor_type for tensor in reader.tensors}


def interleaved(weight, num_heads):
    """Rows of a head 0 .. d-1 as 0, d/2, 1, d/2+1, ..., written with other operations than ours."""
    rows = weight.detach().numpy()
    halves = rows.reshape(num_heads, 2, -1, *rows.shape[1:])
    return np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(rows.shape)


def test_whole_blocks_are_an_ordinary_llama(tmp_path):
    model = make(removed=("1.ffn", "2.attn"))
    metadata, tensors, _ = read(write(model, tmp_path))
    assert metadata["general.architecture"] == "llama"
    expected = {
        "block_count": 5,
        "context_length": 64,
        "embedding_length": 32,
        "feed_forward_length": 48,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 8,
        "attention.value_length": 8,
        "rope.dimension_count": 8,
        "vocab_size": tiny.BYTE_VOCABULARY,
    }
    assert {name: metadata[f"llama.{name}"] for name in expected} == expected
    assert metadata["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(model.config.rms_norm_eps)
    assert metadata["llama.rope.freq_base"] == model.config.rope_parameters["rope_theta"]
    # Removing F1 and A2 leaves block 1 with attention 1 and the feed-forward part of block 2.
    block = model.model.layers[1]
    assert np.array_equal(tensors["blk.1.attn_q.weight"], interleaved(block.self_attn.q_proj.weight, 4))
    assert np.array_equal(tensors["blk.1.attn_k.weight"], interleaved(block.self_attn.k_proj.weight, 2))
    assert np.array_equal(tensors["blk.1.attn_v.weight"], block.self_attn.v_proj.weight.detach())
    assert np.array_equal(tensors["blk.1.ffn_down.weight"], block.mlp.down_proj.weight.detach())
    assert np.array_equal(tensors["blk.1.ffn_norm.weight"], block.post_attention_layernorm.weight.detach())
    assert np.array_equal(tensors["output.weight"], model.lm_head.weight.detach())
    assert len(tensors) == 3 + 5 * 9


def test_tied_embeddings_are_written_once(tmp_path):
    tied = read(write(make(tie_word_embeddings=True), tmp_path / "tied"))[1]
    assert "output.weight" not in tied
    assert "token_embd.weight" in tied


def test_sublayers_alone_become_deci_with_arrays_of_the_block_count(tmp_path):
    model = make(removed=SUBLAYERS)
    metadata, tensors, _ = read(write(model, tmp_path))
    # F0 | A1 F1 | A3 | A4 F4 | A5: the first without attention, the last without a feed-forward part.
    assert metadata["general.architecture"] == "deci"
    assert metadata["deci.block_count"] == 5
    assert metadata["deci.attention.head_count"] == [4, 4, 4, 4, 4]
    assert metadata["deci.attention.head_count_kv"] == [0, 2, 2, 2, 2]
    assert metadata["deci.feed_forward_length"] == [48, 48, 32, 48, 32]
    assert metadata["deci.attention.key_length"] == metadata["deci.rope.dimension_count"] == 8
    present = {name for name in tensors if name.startswith("blk.0.")}
    assert present == {
        f"blk.0.{part}.weight" for part in ("attn_norm", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
    }
    assert np.array_equal(tensors["blk.0.attn_norm.weight"], np.ones(32))
    assert np.array_equal(tensors["blk.0.attn_output.weight"], np.zeros((32, 32)))
    for block in (2, 4):
        assert np.array_equal(tensors[f"blk.{block}.ffn_norm.weight"], np.ones(32))
        for part, shape in (("ffn_gate", (32, 32)), ("ffn_up", (32, 32)), ("ffn_down", (32, 32))):
            assert np.array_equal(tensors[f"blk.{block}.{part}.weight"], np.zeros(shape))


def test_an_attention_missing_later_has_no_heads_and_no_tensors(tmp_path):
    metadata, tensors, _ = read(write(make(removed=("3.attn",)), tmp_path))
    assert metadata["deci.attention.head_count"] == [4, 4, 4, 0, 4, 4]
    assert metadata["deci.attention.head_count_kv"] == [2, 2, 2, 0, 2, 2]
    assert not any(name.startswith("blk.3.attn") for name in tensors)


def test_qwen2_keeps_its_rows_when_whole_and_permutes_rows_and_biases_as_deci(tmp_path):
    whole = make("qwen2", removed=("2.attn", "2.ffn"))
    metadata, tensors, _ = read(write(whole, tmp_path / "whole"))
    attention = whole.model.layers[3].self_attn
    assert metadata["general.architecture"] == "qwen2"
    assert np.array_equal(tensors["blk.3.attn_q.weight"], attention.q_proj.weight.detach())
    assert np.array_equal(tensors["blk.3.attn_k.bias"], attention.k_proj.bias.detach())
    lacking = make("qwen2", removed=("2.attn",))
    metadata, tensors, _ = read(write(lacking, tmp_path / "lacking"))
    attention = lacking.model.layers[3].self_attn
    assert metadata["general.architecture"] == "deci"
    assert np.array_equal(tensors["blk.3.attn_q.weight"], interleaved(attention.q_proj.weight, 4))
    assert np.array_equal(tensors["blk.3.attn_q.bias"], interleaved(attention.q_proj.bias, 4))
    assert np.array_equal(tensors["blk.3.attn_k.bias"], interleaved(attention.k_proj.bias, 2))
    assert np.array_equal(tensors["blk.3.attn_v.bias"], attention.v_proj.bias.detach())


def test_gemma_norms_are_stored_with_the_one_added_and_windows_by_their_period(tmp_path):
    model = make("gemma3_text", removed=("0.ffn", "1.attn", "3.attn", "3.ffn"))
    metadata, tensors, _ = read(write(model, tmp_path))
    assert metadata["general.architecture"] == "gemma3"
    assert metadata["gemma3.attention.sliding_window"] == 4
    assert metadata["gemma3.attention.sliding_window_pattern"] == 2
    assert metadata["gemma3.rope.freq_base"] == model.config.rope_parameters["full_attention"]["rope_theta"]
    assert metadata["gemma3.rope.freq_base_swa"] == model.config.rope_parameters["sliding_attention"]["rope_theta"]
    block = model.model.layers[2]
    norms = {
        "attn_norm": block.input_layernorm,
        "post_attention_norm": block.post_attention_layernorm,
        "ffn_norm": block.pre_feedforward_layernorm,
        "post_ffw_norm": block.post_feedforward_layernorm,
        "attn_q_norm": block.self_attn.q_norm,
        "attn_k_norm": block.self_attn.k_norm,
    }
    for name, norm in norms.items():
        assert np.array_equal(tensors[f"blk.2.{name}.weight"], 1 + norm.weight.detach().numpy())
    assert np.array_equal(tensors["output_norm.weight"], 1 + model.model.norm.weight.detach().numpy())


@pytest.mark.parametrize(
    ("sliding", "period"), [("ssfssf", 3), ("ssfss", 3), ("sfsfs", 2), ("sss", 4), ("s", 2), ("ssssfssssf", 5)]
)
def test_the_period_of_a_rhythm(sliding, period):
    assert layout.window_period([kind == "s" for kind in sliding]) == period


@pytest.mark.parametrize("rhythm", ["ssfsf", "fss", "ff", "sssff"])
def test_a_rhythm_that_no_period_says_is_refused(rhythm):
    kinds = {"s": "sliding_attention", "f": "full_attention"}
    changes = {"num_hidden_layers": len(rhythm), "layer_types": [kinds[kind] for kind in rhythm]}
    config = tiny.config("gemma3_text", **(REGULAR | changes))
    with pytest.raises(InputError, match=f"only knows full attention after every so many .* are {rhythm} .*format hf"):
        form().check(config)


def test_llama3_frequencies_become_the_divisors_that_transformers_applies(tmp_path):
    model = make(rope_parameters=LLAMA3)
    divisors = read(write(model, tmp_path))[1]["rope_freqs.weight"]
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, "cpu")
    plain = 10000.0 ** -(torch.arange(0, 8, 2) / 8)
    assert np.allclose(plain / divisors, scaled, rtol=1e-6)
    assert divisors.max() == pytest.approx(8, rel=1e-6)
    assert divisors.min() == pytest.approx(1, rel=1e-6)


def test_linear_scaling_is_a_key(tmp_path):
    scaled = make(rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0})
    metadata = read(write(scaled, tmp_path))[0]
    assert (metadata["llama.rope.scaling.type"], metadata["llama.rope.scaling.factor"]) == ("linear", 4.0)


@pytest.mark.parametrize(
    ("tensor_type", "stored"), [("f32", "F32"), ("f16", "F16"), ("bf16", "BF16"), ("q8_0", "Q8_0"), (None, "F32")]
)
def test_matrices_are_stored_in_the_type_and_vectors_in_f32(tmp_path, tensor_type, stored):
    model = make(attention_bias=True)
    path = write(model, tmp_path, tensor_type)
    assert path.name == f"model.{stored}.gguf"
    metadata, tensors, types = read(path)
    assert types["blk.1.attn_q.weight"].name == types["token_embd.weight"].name == stored
    assert types["blk.1.attn_norm.weight"] == types["blk.1.attn_q.bias"] == GGMLQuantizationType.F32
    # Rows of 48 numbers are no multiple of Q8_0's 32.
    assert types["blk.1.ffn_down.weight"].name == ("F16" if stored == "Q8_0" else stored)
    weight = model.model.layers[1].mlp.up_proj.weight.detach().numpy()
    error = np.abs(tensors["blk.1.ffn_up.weight"] - weight).max() / np.abs(weight).max()
    assert error <= {"F32": 0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 0.5 / 127 + 1e-3}[stored]
    assert metadata["general.file_type"] == {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7}[stored]
    verify(model, tmp_path, tensor_type)


def test_half_precision_models_keep_their_type(tmp_path):
    path = write(make().to(torch.bfloat16), tmp_path)
    assert read(path)[2]["blk.0.attn_v.weight"] == GGMLQuantizationType.BF16


def test_a_value_that_f16_cannot_hold_is_refused(tmp_path):
    model = make()
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[3, 4] = 1e5
    with pytest.raises(InputError, match=r"values of blk\.2\.ffn_up\.weight do not fit into f16; choose .*bf16"):
        write(model, tmp_path, "f16")


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        (
            "gpt2",
            {},
            "written for llama, .*, and this is a gpt2 model; use the format hf and .*convert_hf_to_gguf",
        ),
        (
            "gemma2",
            tiny.SLIDING | {"query_pre_attn_scalar": 8},
            "gemma2 only knows full attention after every so many sliding ones",
        ),
        (
            "gemma2",
            {"attn_logit_softcapping": None},
            "does not know logits without soft caps",
        ),
        ("llama", {"hidden_act": "gelu"}, "llama.cpp's llama does not know the activation gelu; use the format hf"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
            "does not know rotary scaling of type dynamic",
        ),
        ("mistral", {"sliding_window": 16}, "does not know the sliding window of 16 tokens"),
        ("qwen2", tiny.SPECIAL["qwen2"], "qwen2 does not know the sliding window of 4 tokens"),
        ("gemma3_text", {"query_pre_attn_scalar": 16}, "attention scaled by 16 at 6 blocks"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "soft-capped logits"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "attention in both directions"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused_without_weights(family, changes, words):
    with pytest.raises(InputError, match=words):
        form().check(tiny.config(family, **(SPECIAL.get(family, {}) | changes)))


def test_gemma_without_sublayers_is_refused():
    with pytest.raises(InputError, match="only of llama, qwen2 models, not of gemma3_text; remove blocks or pairs, or"):
        form().check(make("gemma3_text", removed=("3.attn",)).config)


def test_a_tensor_without_a_place_is_refused(tmp_path):
    model = make()
    model.model.layers[1].mlp.extra = torch.nn.Linear(4, 4)
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.extra\.weight, for which llama\.cpp's llama has no place"):
        write(model, tmp_path)


class TestVerification:
    @pytest.fixture
    def written(self, tmp_path):
        model = make(removed=SUBLAYERS)
        return model, write(model, tmp_path)

    def test_what_was_just_written_passes(self, written):
        verify(written[0], written[1].parent)

    def test_a_changed_value_is_named(self, written):
        model, path = written
        tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.1.attn_k.weight")
        with path.open("r+b") as file:
            file.seek(tensor.data_offset + 40)
            file.write(np.float32(9.0).tobytes())
        with pytest.raises(VerificationError, match=r"blk\.1\.attn_k\.weight differs from model\.layers\.1.*k_proj"):
            verify(model, path.parent)

    def test_another_models_file_is_noticed(self, written):
        _, path = written
        with pytest.raises(VerificationError, match=r"the written general\.architecture is deci, not llama"):
            verify(make(), path.parent)
        other = make(removed=("1.attn", "2.attn", "2.ffn", "3.ffn", "5.ffn"))
        with pytest.raises(VerificationError, match=r"head_count is \[4, 4, 4, 4, 4\], not \[4, 0, 4, 4, 4\]"):
            verify(other, path.parent)

    def test_a_missing_tensor_is_named(self, written, monkeypatch):
        model, path = written
        every = convert.tensors
        monkeypatch.setattr("depthcut.export.gguf.write.tensors", lambda *args: every(*args)[:-1])
        write(model, path.parent)
        with pytest.raises(VerificationError, match=r"lacks or adds blk\.4\.ffn_down\.weight"):
            verify(model, path.parent)


class TestQuantiser:
    def test_an_unknown_type_is_refused_with_the_nearest(self):
        with pytest.raises(InputError, match=r"unknown tensor type 'q4_km'; did you mean .*q4_k_m.*llama-quantize"):
            form("q4_km").check(make().config)

    def test_other_types_need_llama_quantize(self, monkeypatch):
        monkeypatch.setattr(shutil, "which", lambda _: None)
        with pytest.raises(InputError, match="'q4_k_m' is made by llama-quantize, which is not on the PATH; install"):
            form("q4_k_m").check(make().config)

    def install(self, folder, script):
        folder.mkdir()
        tool = folder / "llama-quantize"
        tool.write_text("#!/bin/sh\n" + script)
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        return tool

    def test_they_are_made_from_the_models_own_type(self, tmp_path, monkeypatch):
        tool = self.install(tmp_path / "bin", 'cp "$1" "$2"; echo "$3" > "$2.type"\n')
        monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
        model = make()
        write(model, tmp_path / "out", "q4_k_m")
        assert {file.name for file in (tmp_path / "out").iterdir()} == {"model.Q4_K_M.gguf", "model.Q4_K_M.gguf.type"}
        assert (tmp_path / "out" / "model.Q4_K_M.gguf.type").read_text().strip() == "Q4_K_M"
        verify(model, tmp_path / "out")

    def test_its_failure_is_told(self, tmp_path, monkeypatch):
        tool = self.install(tmp_path / "bin", "echo 'rows of 48 do not fit' >&2; exit 1\n")
        monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
        with pytest.raises(InputError, match="llama-quantize could not write q4_k_m: rows of 48 do not fit"):
            write(make(), tmp_path / "out", "q4_k_m")
