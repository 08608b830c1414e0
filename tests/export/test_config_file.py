"""`config.json`: the source's words stay, per-layer entries are cut, and the rotary embedding is said in both ways."""

import json

import pytest

import tiny
from depthcut.export import hf
from depthcut.model.load import resolve
from depthcut.surgery import apply
from depthcut.types import Unit
from model import multimodal

REMOVED = [Unit(layer, kind) for layer in (1, 3) for kind in ("attn", "ffn")]
NOTES = {"_name_or_path": "someone/base", "a_note": {"of": ["its", "author"]}, "transformers_version": "4.44.2"}
LINEAR = {"type": "linear", "factor": 2.0}


pytestmark = pytest.mark.usefixtures("quick_reload")


def pruned(folder, family, removed=REMOVED, drop=(), changes=None, **entries):
    """The entries of a source's config.json and of the pruned model's; verified.

    Args:
        drop: entries of the source's file as tiny writes it that go.
        entries: what its file says instead, as an author may have spelled it.
    """
    source_folder = tiny.save(folder / "source", family, **changes or {})
    file = source_folder / "config.json"
    given = {key: value for key, value in json.loads(file.read_text()).items() if key not in drop} | entries
    file.write_text(json.dumps(given))
    source, written = resolve(str(source_folder)), folder / "written"
    written.mkdir()
    model = apply(source.load_model("cpu"), source.architecture, removed)
    hf.write_directory(model, source.load_tokenizer(), written)
    hf.verify_directory(written, model, tiny.samples(num_samples=1).input_ids)
    return given, json.loads((written / "config.json").read_text())


def test_what_the_source_says_stays_as_it_is_spelled(tmp_path):
    old = {"rope_theta": 20000, "rope_scaling": LINEAR, "torch_dtype": "float32"}
    given, found = pruned(tmp_path, "llama", drop=("rope_parameters", "dtype", "mlp_bias"), **old | NOTES)
    assert found == given | {
        "num_hidden_layers": 4,
        "dtype": "float32",
        "rope_parameters": LINEAR | {"rope_type": "linear", "rope_theta": 20000},
    }
    assert list(found)[: len(given)] == list(given)


def test_a_count_stays_under_the_name_that_the_source_uses(tmp_path):
    given, found = pruned(tmp_path, "gpt2", drop=("n_layer",), num_hidden_layers=tiny.NUM_BLOCKS)
    assert found["num_hidden_layers"] == 4
    assert "n_layer" not in found and found.keys() >= given.keys()


def test_lists_of_one_entry_a_block_are_cut(tmp_path):
    given, found = pruned(tmp_path, "qwen2")
    assert found["layer_types"] == [kind for layer, kind in enumerate(given["layer_types"]) if layer not in (1, 3)]


@pytest.mark.parametrize("family", ["mistral", "llama"])
def test_a_base_that_only_new_readers_find_is_said_to_old_ones(tmp_path, family):
    _, found = pruned(tmp_path, family, rope_parameters={"rope_type": "default", "rope_theta": 321.0}, rope_theta=1e4)
    assert (found["rope_theta"], found["rope_scaling"]) == (321.0, None)
    assert found["rope_parameters"] == {"rope_type": "default", "rope_theta": 321.0}


def test_bases_by_kind_of_attention_are_said_to_old_readers(tmp_path):
    scaled = {"rope_type": "linear", "factor": 8.0}
    by_kind = {
        "full_attention": scaled | {"rope_theta": 900.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    }
    _, found = pruned(tmp_path, "gemma3_text", rope_parameters=by_kind)
    assert found["rope_parameters"] == by_kind
    assert (found["rope_theta"], found["rope_local_base_freq"], found["rope_scaling"]) == (900.0, 50.0, scaled)


def test_rope_factors_as_many_as_blocks_stay_whole(tmp_path):
    # Twelve numbers of a head: six factors, by chance as many as blocks.
    factors = {"short_factor": [1.0 + 0.1 * i for i in range(6)], "long_factor": [2.0 + 0.1 * i for i in range(6)]}
    shape = {"head_dim": 12, "hidden_size": 48, "original_max_position_embeddings": 8}
    rope = factors | {"rope_type": "longrope", "rope_theta": 300.0}
    _, found = pruned(tmp_path, "phi3", changes=shape, rope_parameters=rope)
    assert found["rope_scaling"] == factors | {"type": "longrope"}
    assert {name: found["rope_parameters"][name] for name in factors} == factors


@pytest.mark.parametrize("others", [(), ("layer_types",)])
def test_a_pattern_of_letters_a_block_is_cut(tmp_path, others):
    # Nemotron-H: M a state space, * attention, - and E feed-forward parts. The list is what transformers 5 writes.
    removed = [Unit(1, "mixer"), Unit(3, "mixer")]
    drop = {"layer_types", "layers_block_type"} - set(others)
    entries = {"hybrid_override_pattern": "M*-ME*", "num_hidden_layers": 6}
    _, found = pruned(tmp_path, "nemotron_h", removed, drop=drop, **entries)
    assert (found["hybrid_override_pattern"], found["num_hidden_layers"]) == ("M-E*", 4)


def test_a_configuration_in_parts_is_edited_inside(tmp_path):
    folder = multimodal.save("gemma3", tmp_path / "source")
    file = folder / "config.json"
    given = json.loads(file.read_text()) | NOTES
    given["text_config"]["a_note"] = "of its author"
    file.write_text(json.dumps(given))
    source = resolve(str(folder))
    model = apply(source.load_model("cpu"), source.architecture, REMOVED)
    hf.write_model(model, tmp_path)
    found = json.loads((tmp_path / "config.json").read_text())
    layer_types = [kind for layer, kind in enumerate(given["text_config"]["layer_types"]) if layer not in (1, 3)]
    cut = {"num_hidden_layers": len(layer_types), "layer_types": layer_types}
    assert {name: found["text_config"][name] for name in given["text_config"]} == given["text_config"] | cut
    assert found["a_note"] == given["a_note"] and found["vision_config"] == given["vision_config"]


def test_a_model_that_lacks_sublayers_is_not_said_to_be_stock(tmp_path):
    given, found = pruned(tmp_path, "llama", removed=[Unit(2, "attn")], **NOTES)
    assert found["model_type"] == "depthcut_llama" and found["removed_sublayers"] == ["2.attn"]
    assert found["a_note"] == given["a_note"]
