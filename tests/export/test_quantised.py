"""Quantising on either side of pruning: the same model either way, and the same again in a fresh process."""

import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

import tiny
from depthcut.export import EXPORTS, VerificationError, hf
from depthcut.export.quantised import quantise
from depthcut.model.architectures import find_architecture
from depthcut.model.load import resolve
from depthcut.model.quantisation import num_elements, quantisation
from depthcut.model.units import measure_sizes, sizes_from_config
from depthcut.run.export import export_model
from depthcut.run.prune import prune_model
from depthcut.run.recipe import Recipe
from depthcut.surgery import apply
from depthcut.types import InputError, Unit

SCHEMES = ("int8", "nf4")
BLOCK = [Unit(2, "attn"), Unit(2, "ffn")]
SUBLAYERS = [Unit.parse(name) for name in ("0.attn", "1.ffn", "4.attn")]


@pytest.fixture(autouse=True)
def quick_reload(monkeypatch, request):
    if "fresh" in request.node.name:
        request.getfixturevalue("read_afresh")
    else:
        monkeypatch.setattr(hf, "GREEDY_TOKENS", 4)
        tiny.reload_in_process(monkeypatch)


def make(family="llama", **changes):
    return tiny.model(family, vocab_size=tiny.BYTE_VOCABULARY, **changes)


def cut(model, removed):
    return apply(model, find_architecture(model.config), removed)


@torch.no_grad()
def logits(model):
    return model(input_ids=tiny.samples().input_ids, use_cache=False).logits


def write(scheme, model, folder):
    folder.mkdir()
    form = EXPORTS.find(scheme).make()
    form.check(model.config)
    form.write(model, tiny.tokenizer(), folder)
    return form


def save_quantised(scheme, folder, family="llama"):
    write(scheme, make(family), folder)
    return str(folder)


def recipe(model, **options):
    amounts = {f"{purpose}_{what}": n for purpose in ("calibration", "evaluation") for what, n in SIZES.items()}
    return Recipe.build(model=model, speed=False, **({"method": "shortgpt", "remove": "2"} | amounts | options))


SIZES = {"samples": 2, "length": 16}
TEXT = "The keeper of the lighthouse wrote down every ship that passed, its flag and its hour. " * 10


@pytest.mark.parametrize("removed", [BLOCK, SUBLAYERS], ids=["block", "sublayers"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_both_orders_give_the_same_model(scheme, removed):
    model = make()
    first, last = quantise(cut(model, removed), scheme), cut(quantise(model, scheme), removed)
    assert torch.equal(logits(first), logits(last))
    assert not torch.equal(logits(first), logits(cut(model, removed)))


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "gpt_neox", "phi3", "qwen2"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_both_orders_agree_in_families_whose_maps_look_otherwise(scheme, family, tmp_path):
    model = make(family)
    last = cut(quantise(model, scheme), BLOCK)
    assert torch.equal(logits(quantise(cut(model, BLOCK), scheme)), logits(last))
    hf.write_directory(last, tiny.tokenizer(), tmp_path)
    hf.verify_directory(tmp_path, last, tiny.samples(num_samples=1).input_ids)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pruned_and_quantised_reloads_bit_for_bit_in_a_fresh_process(scheme, tmp_path):
    model = cut(make(), SUBLAYERS)
    form = write(scheme, model, tmp_path / "written")
    form.verify(tmp_path / "written", model, tiny.samples(num_samples=1).input_ids)
    assert quantisation(AutoConfig.from_pretrained(tmp_path / "written")) == scheme


PLAIN_LOSSES = """
import sys, torch
from transformers import AutoModelForCausalLM
ids = torch.tensor([[int(token) for token in sys.argv[2].split(",")]])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
kernels = [(layer, layer.support_avx512bf16_for_cpu) for layer in model.modules() if hasattr(layer, "quant_state")]
for use in (False, True):
    for layer, has in kernels:
        layer.support_avx512bf16_for_cpu = use and has
    with torch.no_grad():
        print(model(input_ids=ids, labels=ids).loss.item())
"""


@torch.no_grad()
@pytest.mark.long
@pytest.mark.parametrize("scheme", SCHEMES)
def test_plain_transformers_finds_the_same_loss_to_three_decimals(scheme, tmp_path):
    """Nothing of ours is in that process. Where a CPU has a kernel in bfloat16 for NF4, its loss is near."""
    # That kernel takes no maps but from multiples of 64 to multiples of 32.
    model = cut(quantise(make(hidden_size=64, intermediate_size=128, head_dim=16), scheme), BLOCK)
    hf.write_directory(model, tiny.tokenizer(), tmp_path)
    ids = tiny.samples(num_samples=1, length=32).input_ids
    command = [sys.executable, "-c", PLAIN_LOSSES, str(tmp_path), ",".join(map(str, ids[0].tolist()))]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    exact, by_kernel = map(float, child.stdout.split())
    expected = float(model(input_ids=ids, labels=ids).loss)
    assert exact == pytest.approx(expected, abs=5e-4)
    assert by_kernel == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_changed_weight_is_noticed(scheme, tmp_path):
    model = make()
    form = write(scheme, model, tmp_path / "written")
    file = tmp_path / "written" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.3.mlp.down_proj.weight"].flatten()[::3] ^= 5
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(VerificationError, match="the reloaded logits differ"):
        form.verify(tmp_path / "written", model, tiny.samples(num_samples=1).input_ids)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_model_that_has_run_is_written_as_it_was(scheme, tmp_path):
    """bitsandbytes changes its layers when they first run, and copies share them."""
    used, unused = quantise(make(), scheme), quantise(make(), scheme)
    copy = cut(used, [])
    expected = logits(unused)
    assert torch.equal(logits(used), expected) and torch.equal(logits(copy), expected)
    for name, model in (("used", used), ("copy", copy)):
        (tmp_path / name).mkdir()
        hf.write_directory(model, tiny.tokenizer(), tmp_path / name)
        assert torch.equal(logits(resolve(str(tmp_path / name)).load_model("cpu")), expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_pruned_copy_shares_the_packed_weights(scheme):
    model = quantise(make(), scheme)
    logits(model)
    pruned = cut(model, BLOCK)
    logits(pruned)
    kept = [m.model.layers[0].mlp.down_proj for m in (model, pruned)]
    assert len({layer.weight.data_ptr() for layer in kept}) == 1
    if scheme == "int8":
        assert len({layer.state.CB.data_ptr() for layer in kept}) == 1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_sizes_count_weights_and_not_bytes(scheme):
    model = make()
    packed = quantise(model, scheme)
    sizes = measure_sizes(packed, find_architecture(model.config))
    assert sizes.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert sizes == sizes_from_config(packed.config, find_architecture(model.config), torch.float32)
    assert num_elements(packed.model.layers[0].mlp.up_proj.weight) == 32 * 48


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        pytest.param("nf4", {"unit": "sublayer", "remove": "3"}, id="nf4-sublayers"),
        pytest.param("nf4", {}, id="nf4-blocks", marks=pytest.mark.long),
        pytest.param("int8", {"unit": "sublayer", "remove": "3"}, id="int8-sublayers", marks=pytest.mark.long),
        pytest.param("int8", {}, id="int8-blocks", marks=pytest.mark.long),
    ],
)
def test_a_quantised_directory_is_pruned_measured_and_reloaded_in_a_fresh_process(scheme, options, tmp_path):
    if options:
        options = {"method": "one-shot", **options}
    directory = save_quantised(scheme, tmp_path / "dense")
    result = prune_model(recipe(directory, **options), tmp_path / "pruned")
    assert result.plan.model.quantisation == scheme
    source = resolve(str(tmp_path / "pruned"))
    assert source.provenance.quantisation == scheme
    expected = cut(resolve(directory).load_model("cpu"), result.plan.removed)
    assert torch.equal(logits(source.load_model("cpu")), logits(expected))
    parameters = {m.model: m.value for m in result.measurements if m.name == "parameters"}
    assert parameters["dense"] == sum(parameter.numel() for parameter in make().parameters())
    assert f"quantised as {scheme}" in (tmp_path / "pruned" / "README.md").read_text()


def test_a_pruned_model_is_written_in_both_forms_beside_it(tmp_path):
    tiny.save(tmp_path / "dense")
    result = prune_model(recipe(str(tmp_path / "dense"), export=SCHEMES), tmp_path / "pruned")
    assert not result.not_written
    for scheme in SCHEMES:
        found = resolve(str(tmp_path / "pruned" / scheme))
        assert found.provenance.quantisation == scheme
        assert torch.equal(logits(found.load_model("cpu")), logits(quantise(result.model, scheme)))


@pytest.mark.parametrize("form", ["gguf", "int8", "nemotron-nas", "nf4", "zeroed"])
def test_other_forms_refuse_quantised_weights(form, tmp_path):
    directory = save_quantised("nf4", tmp_path / "dense")
    with pytest.raises(InputError) as refusal:
        export_model(directory, form, tmp_path / "out")
    assert str(refusal.value) == (
        f"the format {form} cannot hold this model: its weights are stored as nf4, which it would round a second time "
        "or not understand; make it from the unquantised model, or use --to hf"
    )
    assert not (tmp_path / "out").exists()


def test_a_quantised_directory_is_copied_as_hf(tmp_path):
    directory = save_quantised("nf4", tmp_path / "dense")
    export_model(directory, "hf", tmp_path / "out")
    assert torch.equal(*(logits(resolve(str(d)).load_model("cpu")) for d in (directory, tmp_path / "out")))


@pytest.mark.parametrize("name", ["refit", "low-rank", "linear"])
def test_repairs_refuse_before_weights_load(name, tmp_path, monkeypatch):
    directory = save_quantised("int8", tmp_path / "dense")
    monkeypatch.setattr("depthcut.model.load.ModelSource.load_model", lambda *_: pytest.fail("weights were read"))
    expected = (
        f"the repair {name} makes weights anew and cannot write them into int8 ones; repair the model before it is "
        f"quantised: prune the unquantised one with --repair {name}, then depthcut export --to nf4 or int8, or prune "
        "this one with --repair none"
    )
    with pytest.raises(InputError, match=re.escape(expected)):
        prune_model(recipe(directory, repair=name), tmp_path / "out")


def test_a_missing_package_is_named_with_its_installation(tmp_path, monkeypatch):
    directory = save_quantised("nf4", tmp_path / "dense")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for what, attempt in (
        (f"the model {directory}, stored as nf4,", lambda: resolve(directory)),
        ("the format int8", lambda: EXPORTS.find("int8").make().check(tiny.config("llama"))),
    ):
        with pytest.raises(InputError) as refusal:
            attempt()
        assert str(refusal.value) == f"{what} needs the package bitsandbytes; run: pip install 'depthcut[quantise]'"


@pytest.mark.parametrize(
    ("entries", "name"),
    [
        (None, None),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "fp4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}, "int8"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
    ],
)
def test_the_configuration_says_what_weights_are_stored_as(entries, name):
    assert quantisation(tiny.config("llama", quantization_config=entries)) == name


@torch.no_grad()
@pytest.mark.long
@pytest.mark.real
def test_smollm2_is_the_same_model_in_either_order_fresh(tmp_path):
    source = resolve("smollm2")
    dense, tokenizer = source.load_model("cpu"), source.load_tokenizer()
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"][:, :128]

    def loss(model):
        return float(model(input_ids=ids, labels=ids, use_cache=False).loss)

    removed = [Unit(layer, kind) for layer in (13, 25) for kind in ("attn", "ffn")]
    pruned = apply(dense, source.architecture, removed)
    first, last = quantise(pruned, "nf4"), apply(quantise(dense, "nf4"), source.architecture, removed)
    # Rounding moves the loss by tenths of a nat, either way on one short text; weights in a wrong order by many nats.
    assert 0 < abs(loss(first) - loss(pruned)) < 0.6
    assert loss(first) == loss(last)
    hf.write_directory(last, tokenizer, tmp_path)
    hf.verify_directory(tmp_path, last, ids[:, :32])
    assert loss(resolve(str(tmp_path)).load_model("cpu")) == pytest.approx(loss(last), abs=5e-4)
