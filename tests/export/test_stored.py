"""Models stored quantised go in and out in their own format: kept tensors byte for byte, and read again as before."""

import json
import re
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file

import stored_models
import tiny
from depthcut.export import hf
from depthcut.export.stored import lying_in, write_weights
from depthcut.model.bypass import bypass
from depthcut.model.load import resolve
from depthcut.model.paging import Pager
from depthcut.model.stored import stored_model
from depthcut.model.unpacking import unpack_words
from depthcut.run.prune import prune_model
from depthcut.run.recipe import Recipe
from depthcut.run.session import pose_problem
from depthcut.surgery import apply
from depthcut.types import InputError, Unit
from stored_models import KEPT_PLAIN, PAIRS, before_pairs, contents, logits, renamed

FAMILY = {"mxfp4": ("gpt_oss", {"intermediate_size": 32})}
NEEDS = {
    "compressed-tensors": pytest.mark.skipif(
        find_spec("compressed_tensors") is None, reason="needs pip install 'depthcut[quantise]'"
    )
}
KINDS = [pytest.param(kind, marks=NEEDS.get(kind, ())) for kind in stored_models.WRITERS]


def save(folder, kind, family=None, **changes):
    usual, shape = FAMILY.get(kind, ("llama", {"intermediate_size": 64}))
    return stored_models.save(folder, kind, family or usual, **shape | changes)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_pruned_as_it_is_stored(kind, tmp_path, request, capsys):
    request.getfixturevalue("read_afresh" if kind == "fp8" else "quick_reload")
    meant = save(tmp_path / "dense", kind)
    dense = resolve(str(tmp_path / "dense")).load_model("cpu")
    for name, values in meant.items():
        assert torch.equal(dense.get_parameter(name), values.bfloat16()), name

    options = tiny.SHORT_RUN | {"method": "greedy,strategy=exhaustive", "unit": "block"}
    result = prune_model(Recipe.build(model=str(tmp_path / "dense"), **options), tmp_path / "out")
    assert f"the weights are stored as {kind} and stay so, so nothing is repaired" in capsys.readouterr().err
    source, written = contents(tmp_path / "dense"), contents(tmp_path / "out")
    removed = {unit.layer for unit in result.plan.removed}
    blocks = [layer for layer in range(tiny.NUM_BLOCKS) if layer not in removed]
    assert len(blocks) == 4
    for name, content in written.items():
        assert content == source[renamed(name, blocks)], name
    gone = {name for name in source if re.search(rf"layers\.({'|'.join(map(str, removed))})\.", name)}
    assert len(written) == len(source) - len(gone)

    entries = json.loads((tmp_path / "out" / "config.json").read_text())
    plain = [renamed(f"model.layers.{layer}.mlp.up_proj", blocks) for layer in range(4)]
    expected = f"model.layers.{plain.index(KEPT_PLAIN)}.mlp.up_proj" if KEPT_PLAIN in plain else ""
    names = re.findall(r"[\w.]*up_proj", json.dumps(entries["quantization_config"]))
    assert [name.removeprefix("-:") for name in names] == [expected] * bool(expected)

    reloaded = resolve(str(tmp_path / "out"))
    assert reloaded.provenance.quantisation == kind
    with bypass(dense, reloaded.architecture, result.plan.removed):
        expected_logits = logits(dense)
    assert torch.equal(logits(result.model), expected_logits)
    assert torch.equal(logits(reloaded.load_model("cpu")), expected_logits)
    sizes = {(m.name, m.model): m for m in result.measurements}
    on_disk = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert (sizes["bytes_on_disk", "pruned"].value, sizes["bytes_on_disk", "pruned"].data) == (
        on_disk,
        f"stored as {kind}",
    )
    assert sizes["parameters", "dense"].value == dense.num_parameters()


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "deepseek_v3"])
@pytest.mark.parametrize("paged", [False, True], ids=["in memory", "paged"])
def test_blocks_of_two_halves(family, paged, tmp_path, monkeypatch):
    """Attention of one block and feed-forward part of another, experts stored one by one, and FP8 blocks that reach
    over the edge of a matrix (DeepSeek's keys here have 24 rows in blocks of 16)."""
    tiny.reload_in_process(monkeypatch)
    meant = save(tmp_path / "dense", "fp8", family, intermediate_size=48, num_nextn_predict_layers=0)
    source = resolve(str(tmp_path / "dense"))
    dense = source.load_model("cpu", Pager(0) if paged else None)
    if family == "deepseek_v3":
        name = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
        assert torch.equal(dense.get_parameter(name), meant.get(name, dense.get_parameter(name)).bfloat16())
    pruned = apply(dense, source.architecture, PAIRS)
    (tmp_path / "out").mkdir()
    hf.write_directory(pruned, tiny.tokenizer(), tmp_path / "out")
    hf.verify_directory(tmp_path / "out", pruned, tiny.samples(num_samples=1).input_ids)
    before, after = contents(tmp_path / "dense"), contents(tmp_path / "out")
    for name, content in after.items():
        assert content == before[before_pairs(name)], name


@pytest.mark.long
def test_what_is_unpacked_here_is_read_in_a_fresh_process_too(tmp_path):
    save(tmp_path / "dense", "gptq")
    source = resolve(str(tmp_path / "dense"))
    pruned = apply(source.load_model("cpu"), source.architecture, PAIRS)
    (tmp_path / "out").mkdir()
    hf.write_directory(pruned, tiny.tokenizer(), tmp_path / "out")
    hf.verify_directory(tmp_path / "out", pruned, tiny.samples(num_samples=1).input_ids)


def test_a_repair_that_is_asked_for_is_written_dequantised(tmp_path, monkeypatch):
    tiny.reload_in_process(monkeypatch)
    save(tmp_path / "dense", "fp8")
    options = tiny.SHORT_RUN | {"method": "shortgpt", "repair": "refit"}
    result = prune_model(Recipe.build(model=str(tmp_path / "dense"), **options), tmp_path / "out")
    reloaded = resolve(str(tmp_path / "out"))
    assert reloaded.provenance.quantisation is None
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert torch.equal(logits(reloaded.load_model("cpu")), logits(result.model))
    (data,) = {m.data for m in result.measurements if (m.name, m.model) == ("bytes_on_disk", "pruned")}
    assert data == "stored as bfloat16"


def test_a_precision_to_write_in_dequantises(tmp_path):
    save(tmp_path / "dense", "fp8")
    source = resolve(str(tmp_path / "dense"), save_dtype="bfloat16")
    (tmp_path / "out").mkdir()
    model = source.load_model("cpu")
    hf.write_directory(model, tiny.tokenizer(), tmp_path / "out")
    plain = resolve(str(tmp_path / "out"))
    assert plain.provenance.quantisation is None
    assert torch.equal(logits(plain.load_model("cpu")), logits(model))


@pytest.mark.parametrize(("family", "kind"), [("llama", "fp8"), ("qwen3_moe", None)])
def test_blocks_that_lack_sublayers_stay_stored_where_their_type_can_read_it(family, kind, tmp_path, monkeypatch):
    tiny.reload_in_process(monkeypatch)
    save(tmp_path / "dense", "fp8", family)
    source = resolve(str(tmp_path / "dense"))
    pruned = apply(source.load_model("cpu"), source.architecture, [Unit(1, "attn"), Unit(4, "ffn")])
    (tmp_path / "out").mkdir()
    hf.write_directory(pruned, tiny.tokenizer(), tmp_path / "out")
    hf.verify_directory(tmp_path / "out", pruned, tiny.samples(num_samples=1).input_ids)
    assert resolve(str(tmp_path / "out")).provenance.quantisation == kind


def test_a_budget_in_bytes_counts_what_is_stored(tmp_path):
    """What two of six blocks hold in the files has to go, and two blocks do."""
    save(tmp_path / "dense", "fp8")
    source = resolve(str(tmp_path / "dense"))
    lying = lying_in(tmp_path / "dense")
    total = sum(tensor.num_bytes for tensor in lying.values())
    block = sum(tensor.num_bytes for name, tensor in lying.items() if "layers.0." in name)
    options = {"unit": "block", "remove": None, "budget": f"bytes={total - 2 * block}B"}
    recipe = Recipe.build(model=str(tmp_path / "dense"), method="shortgpt", **options)
    share = pose_problem(recipe, source).budget.amount
    plain = tiny.model(intermediate_size=64, vocab_size=tiny.BYTE_VOCABULARY)
    of_block = sum(parameter.numel() for parameter in plain.model.layers[0].parameters())
    # One map of block 2 is not quantised: over all blocks a parameter takes a little more than in block 0.
    assert share == pytest.approx(1 - 2 * of_block / plain.num_parameters(), rel=2e-2)


def test_a_budget_in_bytes_needs_the_files(tmp_path):
    save(tmp_path / "dense", "fp8")
    (tmp_path / "dense" / "model.safetensors").unlink()
    source = resolve(str(tmp_path / "dense"), needs_weights=False)
    for budget in ("bytes=1MB", "memory=1MB,context=16"):
        recipe = Recipe.build(model=str(tmp_path / "dense"), method="shortgpt", budget=budget)
        with pytest.raises(InputError, match="stored as fp8, only their files say; download the model first"):
            pose_problem(recipe, source)
    recipe = Recipe.build(model=str(tmp_path / "dense"), method="shortgpt", budget="parameters=0.8")
    assert pose_problem(recipe, source).budget.amount == 0.8


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (
            "fp8",
            {"quant_method": "aqlm"},
            "stored as aqlm, cannot be computed with: neither .*; give the model unquant",
        ),
        (
            "gptq",
            {"checkpoint_format": "marlin"},
            r"one engine \(checkpoint_format marlin\), .* layout gptq or gptq_v2",
        ),
        ("awq", {"version": "GEMV"}, r"one engine \(version gemv\), which nothing unpacks here"),
    ],
)
def test_what_nothing_dequantises_is_refused_before_weights_load(kind, changes, words, tmp_path):
    save(tmp_path / "dense", kind)
    file = tmp_path / "dense" / "config.json"
    entries = json.loads(file.read_text())
    entries["quantization_config"] |= changes
    file.write_text(json.dumps(entries))
    with pytest.raises(InputError, match=words):
        resolve(str(tmp_path / "dense"))


def test_integers_of_three_bits_reach_over_words():
    values = torch.randint(0, 8, (64, 5), generator=torch.Generator().manual_seed(0))
    words = []
    for column in values.T.tolist():
        stream = sum(value << (3 * place) for place, value in enumerate(column))
        words.append([(stream >> (32 * place)) & 0xFFFFFFFF for place in range(6)])
    packed = torch.tensor(words).T
    signed = torch.where(packed >= 2**31, packed - 2**32, packed).int()
    assert torch.equal(unpack_words(signed, 3), values.int())


def test_large_models_are_written_in_several_files(tmp_path):
    save(tmp_path / "dense", "fp8")
    source = resolve(str(tmp_path / "dense"))
    stored = stored_model(source.load_model("cpu"), source.architecture)
    (tmp_path / "out").mkdir()
    write_weights(stored, tmp_path / "out", shard_bytes=20_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = {file: load_file(tmp_path / "out" / file) for file in set(index["weight_map"].values())}
    assert len(files) > 2
    dense = load_file(tmp_path / "dense" / "model.safetensors")
    found = {name: files[file][name] for name, file in index["weight_map"].items()}
    assert found.keys() == dense.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in dense.values())
    assert all(sum(tensor.nbytes for tensor in tensors.values()) <= 20_000 for tensors in files.values())


@pytest.mark.parametrize("kind", KINDS)
def test_computed_in_float32_when_asked(kind, tmp_path, monkeypatch):
    """One precision throughout, whatever a dequantisation gives; what is written is what is stored."""
    tiny.reload_in_process(monkeypatch)
    monkeypatch.setattr(hf, "GREEDY_TOKENS", 4)
    meant = save(tmp_path / "dense", kind)
    source = resolve(str(tmp_path / "dense"), dtype="float32")
    dense = source.load_model("cpu")
    assert {tensor.dtype for tensor in dense.state_dict().values()} == {torch.float32}
    for name, values in meant.items():
        torch.testing.assert_close(dense.get_parameter(name), values, atol=0, rtol=torch.finfo(torch.bfloat16).eps)
    with bypass(dense, source.architecture, PAIRS):
        bypassed = logits(dense)
    pruned = apply(dense, source.architecture, PAIRS)
    assert bypassed.dtype == torch.float32 and torch.equal(logits(pruned), bypassed)
    (tmp_path / "out").mkdir()
    hf.write_directory(pruned, tiny.tokenizer(), tmp_path / "out")
    hf.verify_directory(tmp_path / "out", pruned, tiny.samples(num_samples=1).input_ids)
    before, after = contents(tmp_path / "dense"), contents(tmp_path / "out")
    for name, content in after.items():
        assert content == before[before_pairs(name)], name
