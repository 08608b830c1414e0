"""Every family: what the table in the documentation says is what holds, cell by cell; and configurations by hand."""

import json
import subprocess
from pathlib import Path

import all_types
import family_proofs
import family_table
import gguf
import pytest
from family_engines import LLAMA_CPP, NOT_LOOKED_UP, VLLM
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import depthcut
import tiny
from depthcut.evaluation.engines import find_interpreter
from depthcut.export import hf
from depthcut.model.architectures import FAMILIES, REFUSED, VARIANTS, find_architecture
from depthcut.model.latency import measure_latency
from depthcut.model.load import resolve
from depthcut.model.stream import DecoderStream
from depthcut.surgery import apply, check_removal
from depthcut.types import InputError, Unit


@pytest.fixture(scope="module")
def documented():
    return family_table.parse(family_table.DOCUMENT.read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", tiny.short_and_long(tiny.CASES, tiny.REPRESENTATIVE))
@pytest.mark.usefixtures("read_afresh")
def test_what_the_table_says_of_a_family_holds(case, documented, tmp_path, monkeypatch):
    monkeypatch.setattr(hf, "GREEDY_TOKENS", family_proofs.GREEDY_TOKENS)
    outcomes = family_proofs.prove(case, tmp_path)
    assert {column: family_table.normalised(case, found) for column, found in outcomes.items()} == documented[case]


def test_the_table_is_whole_and_says_nothing_else(documented):
    assert list(documented) == list(tiny.CASES)
    assert family_table.render(documented) == family_table.DOCUMENT.read_text(encoding="utf-8")


def test_every_type_of_transformers_has_a_row():
    found = all_types.parse(family_table.DOCUMENT.read_text(encoding="utf-8"))
    assert {kind: list(types) for kind, types in found.items()} == {
        kind: sorted(types) for kind, types in all_types.MAPPINGS.items()
    }
    share = sum(not outcome.startswith("refused") for outcome in found["causal"].values()) / len(found["causal"])
    assert share >= all_types.GOAL


@pytest.mark.long
def test_what_a_row_says_of_a_type_is_so(documented):
    document = family_table.DOCUMENT.read_text(encoding="utf-8")
    assert all_types.render() in document and all_types.headline() in document
    # What is supported by a row of its own stands in the table of proofs.
    assert all(documented[model_type]["block"] == "yes" for model_type in FAMILIES)


# By family, entries after the removal of blocks 1 and 3, and after that of 3.ffn and 4.attn.
EXPECTED = {
    "gemma3_text": (
        {"layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]},
        {"layer_types": [*tiny.SLIDING["layer_types"][:4], "sliding_attention"]},
    ),
    "smollm3": ({"no_rope_layers": [1, 1, 0, 1]}, {"no_rope_layers": [1, 0, 1, 1, 1]}),
    "gpt_neo": (
        {"attention_layers": ["local", "local", "global", "local"], "num_layers": 4},
        {"attention_layers": ["local", "global", "local", "local", "local"], "num_layers": 5},
    ),
    "llama4_text": ({"moe_layers": [0, 3], "no_rope_layers": [1, 1, 0, 1]}, {"moe_layers": [0, 4]}),
    "qwen3_moe": (
        {"mlp_only_layers": [0, 1, 2], "decoder_sparse_step": 1},
        {"mlp_only_layers": [0, 1, 2, 3], "decoder_sparse_step": 1},
    ),
    "deepseek_v3": (
        {"first_k_dense_replace": 2, "num_nextn_predict_layers": 0},
        {"first_k_dense_replace": 3, "num_nextn_predict_layers": 0},
    ),
    "lfm2_moe": ({"num_dense_layers": 2}, {"num_dense_layers": 3}),
    "bamba": ({"attn_layer_indices": [2]}, {"attn_layer_indices": [1]}),
    "jamba": (
        {"attn_layer_period": 3, "attn_layer_offset": 2, "expert_layer_period": 4, "expert_layer_offset": 3},
        {"attn_layer_period": 4, "attn_layer_offset": 1, "expert_layer_period": 3, "expert_layer_offset": 1},
    ),
    "granitemoehybrid": (
        {"layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"]},
        {"layer_types": ["linear_attention", "full_attention", *["linear_attention"] * 3]},
    ),
    "nemotron_h": ({"layers_block_type": ["linear_attention", "mlp", "moe", "full_attention"]}, None),
    "mpt": ({"n_layers": 4}, {"n_layers": 5}),
}


@pytest.mark.parametrize("family", EXPECTED)
def test_the_configuration_is_that_of_the_kept_blocks(family):
    model = tiny.model(family)
    architecture = find_architecture(model.config)
    for sort, entries in zip(("block", "pair"), EXPECTED[family], strict=True):
        if entries is not None:
            pruned = apply(model, architecture, tiny.removals(architecture)[sort])
            assert {name: getattr(pruned.config, name) for name in entries} == entries
            assert pruned.config.num_hidden_layers == len(architecture.block_list(pruned))


def test_what_no_period_can_say_is_refused_before_weights_load():
    config = tiny.config("jamba")
    removed = [Unit(layer, kind) for layer in (0, 5) for kind in ("mixer", "ffn")]
    check_removal(config, find_architecture(config), removed)
    with pytest.raises(InputError, match="2, 4 of 5 would be those with experts, which no expert_layer_period"):
        check_removal(config, find_architecture(config), [Unit(1, "ffn"), Unit(2, "mixer")])


def test_a_hybrid_keeps_a_mixer_of_each_kind():
    config = tiny.config("lfm2")
    with pytest.raises(InputError, match="no mixer of the kind full_attention would remain"):
        check_removal(config, find_architecture(config), [Unit(1, "mixer"), Unit(4, "mixer")])


@pytest.mark.parametrize("model_type", REFUSED)
def test_refused_types_are_refused_with_their_reason(model_type):
    with pytest.raises(InputError, match=f"type '{model_type}' cannot be pruned: {REFUSED[model_type][:20]}"):
        find_architecture(type("Config", (PreTrainedConfig,), {"model_type": model_type})())


def test_no_type_is_both_known_and_refused():
    assert not FAMILIES.keys() & REFUSED.keys()
    assert VARIANTS.keys() <= FAMILIES.keys()
    # Every name is one that transformers has.
    for model_type in (*FAMILIES, *REFUSED):
        assert model_type in CONFIG_MAPPING


def test_bloom_that_adds_to_the_normed_stream_is_refused():
    with pytest.raises(InputError, match="its blocks add to the normed stream"):
        find_architecture(tiny.config("bloom", apply_residual_connection_post_layernorm=True))


def test_llama_cpp_has_the_named_architectures():
    assert set(LLAMA_CPP.values()) <= set(gguf.MODEL_ARCH_NAMES.values())
    assert LLAMA_CPP.keys() <= FAMILIES.keys()


@pytest.mark.parametrize(("family", "unit"), [("mamba2", "block"), ("lfm2", "sublayer"), ("granitemoehybrid", "pair")])
def test_mixers_go_through_the_whole_pipeline(family, unit, tmp_path, monkeypatch):
    tiny.reload_in_process(monkeypatch)
    texts = {}
    for purpose, words in (("calibration", "one two three"), ("evaluation", "four five six")):
        texts[purpose] = str(tmp_path / f"{purpose}.txt")
        Path(texts[purpose]).write_text("\n\n".join(f"{words} {number}" for number in range(40)))
    sizes = {f"{purpose}_{part}": 4 if part == "samples" else 16 for purpose in texts for part in ("samples", "length")}
    model = tiny.save(tmp_path / "dense", family)
    result = depthcut.prune(str(model), output=tmp_path / "out", remove=2, unit=unit, speed=False, **texts, **sizes)
    kinds = ["mixer"] if family == "mamba2" else ["mixer", "ffn"]
    assert {removed.kind for removed in result.plan.removed} <= set(kinds)
    assert len(result.plan.removed) == 2 * (1 if unit == "sublayer" else len(kinds))
    assert resolve(str(tmp_path / "out")).provenance.num_blocks >= 4


def test_a_hybrid_is_timed_by_mixer_and_feed_forward_part():
    model = tiny.model("lfm2")
    stream = DecoderStream(model, find_architecture(model.config))
    latency = measure_latency(stream, tiny.samples(1, 12).input_ids)
    assert latency.unit_seconds.keys() == {"mixer", "ffn"} and latency.token_seconds > 0


@pytest.mark.vllm
def test_vllm_has_the_named_families():
    script = (
        "import json; from vllm.model_executor.models import registry; "
        "print(json.dumps(list(registry._TEXT_GENERATION_MODELS)))"
    )
    child = subprocess.run([find_interpreter("vllm"), "-c", script], capture_output=True, text=True, check=True)
    known = json.loads(child.stdout.strip().splitlines()[-1])
    assert {
        family for family in FAMILIES.keys() - NOT_LOOKED_UP if MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family] in known
    } == VLLM
