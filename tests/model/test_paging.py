"""A model whose weights stay in files gives what it gives in memory, bit for bit, and takes no more than it is told."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import tiny
from depthcut.ablation.ablation import Ablation
from depthcut.evaluation.language import compare_language
from depthcut.export import VerificationError
from depthcut.export.hf import verify_directory, write_directory, write_model
from depthcut.importance.static import static_scores
from depthcut.model.load import resolve
from depthcut.model.paging import Pager, pager_of
from depthcut.model.stream import DecoderStream
from depthcut.process.memory import resident_bytes, share_out, share_out_device
from depthcut.repairs import Damage, repair_and_judge
from depthcut.repairs.refit import Refit
from depthcut.results import Measurement, read_list
from depthcut.run.recipe import Recipe
from depthcut.run.session import load, prepare
from depthcut.surgery import apply
from depthcut.types import InputError, Unit

PAIRS = frozenset({Unit(2, "ffn"), Unit(3, "attn"), Unit(4, "attn"), Unit(4, "ffn")})
SUBLAYERS = frozenset({Unit(0, "attn"), Unit(2, "ffn"), Unit(3, "ffn")})


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def both(folder, capacity=20_000, activations=2**20, dtype="float32"):
    """The engine on the model in memory, and on the same one that is paged."""
    source = resolve(str(folder), dtype=dtype)
    models = [source.load_model("cpu", pager) for pager in (None, Pager(capacity, activations))]
    # Tensors of a mapped file lie anywhere, and small products round differently where they are not aligned.
    for parameter in models[0].parameters():
        parameter.data = parameter.data.clone()
    return [DecoderStream(model, source.architecture) for model in models]


def logits(stream, samples):
    batch = stream.prepare(samples.input_ids, samples.attention_mask)
    return torch.cat([piece for _, piece in stream.logits(batch, stream.run(batch))], dim=1)


@pytest.mark.parametrize("family", tiny.REPRESENTATIVE)
def test_every_family_gives_the_same_logits_and_is_written_the_same(family, tmp_path):
    in_memory, paged = both(tiny.save(tmp_path / "model", family))
    samples = tiny.samples()
    assert torch.equal(logits(in_memory, samples), logits(paged, samples))
    assert paged.pager.bytes_read > sum(parameter.nbytes for parameter in paged.model.parameters()) / 2

    written = []
    for name, stream in (("memory", in_memory), ("paged", paged)):
        folder = tmp_path / name
        folder.mkdir()
        removal = next(iter(tiny.removals(stream.architecture).values()))
        write_model(apply(stream.model, stream.architecture, removal), folder)
        written.append({k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()})
    first, second = written
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(logits(in_memory, samples), logits(paged, samples))


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "qwen3_moe", "granitemoehybrid"])
def test_scores_search_and_measurements_are_the_same(family, tmp_path):
    in_memory, paged = both(tiny.save(tmp_path / "model", family))
    samples = tiny.samples(5)
    assert static_scores(in_memory, samples, 2) == static_scores(paged, samples, 2)
    values = []
    for stream in (in_memory, paged):
        ablation = Ablation(stream, samples, "kl", batch_size=2, memory_budget=10**4)
        found = [ablation.evaluate([frozenset(), *(frozenset({unit}) for unit in stream.units)])]
        base = frozenset(stream.units[2:10:7])
        ablation.rebase(base)
        sets = [base | {unit} for unit in stream.units] + [frozenset(stream.units[-1:]), base]
        found.append(ablation.evaluate(sets))
        values.append((found, ablation.whole_unit_evaluations))
    assert values[0] == values[1]
    block = next(iter(tiny.removals(paged.architecture).values()))
    cuts = [{"cut": DecoderStream(apply(s.model, s.architecture, block), s.architecture)} for s in (in_memory, paged)]
    assert compare_language(in_memory, cuts[0], samples) == compare_language(paged, cuts[1], samples)


def test_a_round_reads_every_weight_once(tmp_path):
    _, paged = both(tiny.save(tmp_path / "model"))
    ablation = Ablation(paged, tiny.samples(6), "kl", batch_size=2)
    embedding = paged.model.get_input_embeddings().weight
    weights = sum(parameter.nbytes for parameter in paged.model.parameters() if parameter is not embedding)
    before = paged.pager.bytes_read
    ablation.evaluate([frozenset({unit}) for unit in paged.units])
    # The vocabulary projection runs for every set, and may have to come in again after the blocks.
    assert paged.pager.bytes_read - before < 1.3 * weights


def test_a_round_that_does_not_fit_side_by_side_reads_them_more_often_and_finds_the_same(tmp_path):
    folder = tiny.save(tmp_path / "model")
    values, read = [], []
    for activations in (2**20, 1):
        _, paged = both(folder, activations=activations)
        ablation = Ablation(paged, tiny.samples(4), "js")
        before = paged.pager.bytes_read
        values.append(ablation.evaluate([frozenset({unit}) for unit in paged.units]))
        read.append(paged.pager.bytes_read - before)
    assert values[0] == values[1]
    assert 5 * read[0] < read[1]


def test_refit_gives_the_same_weights_and_keeps_them_in_files(tmp_path):
    repaired = []
    for stream in both(tiny.save(tmp_path / "model")):
        damage = Damage(stream, PAIRS, tiny.samples(16, 24), tiny.samples(6, 24, seed=5), 2**30)
        model, record = repair_and_judge("refit", Refit(), damage, apply(stream.model, stream.architecture, PAIRS))
        repaired.append((model, record))
    (in_memory, record), (paged, other) = repaired
    assert record == other and record.kept
    assert all(torch.equal(a, b) for a, b in zip(in_memory.parameters(), paged.parameters(), strict=True))
    changed = [p for p in paged.parameters() if pager_of(torch.nn.ParameterList([p])) is None]
    assert not changed


@pytest.mark.usefixtures("read_afresh")
@pytest.mark.parametrize("removed", [PAIRS, SUBLAYERS])
def test_a_written_directory_is_verified_in_a_fresh_process(removed, tmp_path):
    _, paged = both(tiny.save(tmp_path / "model"))
    pruned = apply(paged.model, paged.architecture, removed)
    folder = tmp_path / "written"
    folder.mkdir()
    write_directory(pruned, tiny.tokenizer(), folder)
    ids = tiny.samples(1).input_ids
    verify_directory(folder, pruned, ids)

    file = next(iter(folder.glob("*.safetensors")))
    tensors = load_file(file)
    name = next(name for name in tensors if "v_proj" in name)
    tensors[name][0, 0] += 1e-6
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(VerificationError, match=name):
        verify_directory(folder, pruned, ids)


def test_another_precision_is_written_to_files_once(tmp_path):
    in_memory, paged = both(tiny.save(tmp_path / "model"), dtype="bfloat16")
    assert torch.equal(logits(in_memory, tiny.samples()), logits(paged, tiny.samples()))
    assert {parameter.dtype for parameter in paged.model.parameters()} == {torch.bfloat16}


def test_values_in_memory_are_never_taken_for_pages(tmp_path):
    _, paged = both(tiny.save(tmp_path / "model"))
    pager = paged.pager
    assert pager is not None
    logits(paged, tiny.samples())
    own = torch.arange(2**16, dtype=torch.float32)
    pager.drop_pages(own, *paged.model.parameters(), *paged.model.buffers())
    assert torch.equal(own, torch.arange(2**16, dtype=torch.float32))
    in_memory, _ = both(tmp_path / "model")
    assert torch.equal(logits(in_memory, tiny.samples()), logits(paged, tiny.samples()))


@pytest.mark.long
@pytest.mark.real
def test_a_gguf_is_dequantised_into_files():
    source = resolve("smollm2")
    in_memory = DecoderStream(source.load_model("cpu"), source.architecture)
    paged = DecoderStream(source.load_model("cpu", Pager(2**24)), source.architecture)
    samples = tiny.samples(1)
    assert torch.equal(logits(in_memory, samples), logits(paged, samples))


LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "vocab_size": tiny.BYTE_VOCABULARY}
BUDGET = 720 * 2**20
RUN = """
import re, resource
from pathlib import Path
import depthcut.run.prune
from depthcut.cli import main
from depthcut.process.memory import resident_bytes
print(resident_bytes())
try:
    main()
finally:
    # What getrusage tells of a process itself begins with the memory of the one that started it.
    own = int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
    print(1024 * own, 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A model of half a GB on disk, a file for each block, that is never in memory whole."""
    folder = tmp_path_factory.mktemp("large")
    config = LlamaConfig(**LARGE, num_attention_heads=8, num_key_value_heads=8, dtype=torch.float32)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    generator, where = torch.Generator().manual_seed(0), {}
    parts = [[name for name in shapes if f".layers.{layer}." in name] for layer in range(config.num_hidden_layers)]
    for number, names in enumerate([*parts, [name for name in shapes if ".layers." not in name]]):
        tensors = {
            name: torch.ones(shapes[name]) if "norm" in name else torch.randn(shapes[name], generator=generator) / 50
            for name in names
        }
        save_file(tensors, folder / f"model-{number}.safetensors", metadata={"format": "pt"})
        where |= dict.fromkeys(names, f"model-{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


@pytest.mark.long
@pytest.mark.parametrize(
    "options", [["--method", "shortgpt"], ["--unit", "block", "--method", "greedy,strategy=exhaustive"]]
)
def test_a_whole_run_stays_within_its_budget(large, tmp_path, options):
    output = tmp_path / "out"
    command = ["prune", str(large), "-o", str(output), "--remove", "1", "--memory-budget", f"{BUDGET // 2**20}MiB"]
    command += ["--repair", "none"]
    text = ["--calibration-samples", "4", "--calibration-length", "48", "--evaluation-samples", "2"]
    given = [*command, *text, "--evaluation-length", "48", *options]
    child = subprocess.run([sys.executable, "-c", RUN, *given], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert "speed is not measured: the weights are paged, so that it would be the disk's" in child.stderr
    assert not any("tokens/s" in row.unit for row in read_list(Measurement, output / "results.json"))
    at_first, own, of_children = map(int, [child.stdout.split()[0], *child.stdout.split()[-2:]])
    weights = sum(file.stat().st_size for file in large.glob("*.safetensors"))
    assert max(own, of_children) < BUDGET < at_first + weights
    assert resolve(str(output)).config.num_hidden_layers == LARGE["num_hidden_layers"] - 1


def test_always_the_same_weights_stay_and_the_others_come_in_once_a_pass(tmp_path):
    folder = tiny.save(tmp_path / "model")
    in_memory, _ = both(folder)
    blocks = [sum(parameter.nbytes for parameter in block.parameters()) for block in in_memory.blocks]
    head = in_memory.model.lm_head.weight.nbytes + in_memory.model.model.norm.weight.nbytes
    # Room for the head, for two blocks and for what runs.
    _, paged = both(folder, capacity=head + 2 * blocks[0] + max(head, *blocks))
    found = [logits(paged, tiny.samples())]
    for _ in range(2):
        before = paged.pager.bytes_read
        found.append(logits(paged, tiny.samples()))
        assert paged.pager.bytes_read - before == sum(blocks[:-2])
    assert all(torch.equal(logits(in_memory, tiny.samples()), each) for each in found)


def test_an_accelerator_that_cannot_hold_two_blocks_is_said_to_be_too_small(tmp_path):
    pager = Pager(20_000)
    pager.device = torch.device("meta")
    with pytest.raises(InputError, match=r"have to be on meta at a time .* give a larger --device-memory"):
        resolve(str(tiny.save(tmp_path / "model")), dtype="float32").load_model("cpu", pager)


def test_an_accelerators_memory_is_shared_out():
    assert share_out_device(24e9, int(16e9), None).weights is None
    room = share_out_device(80e9, int(141e9), 2**30)
    assert room.weights is not None and room.weights > 40e9 and room.solving == 2**30
    assert room.weights + room.kept + room.abreast <= 0.9 * 80e9


def test_a_budget_is_shared_out():
    assert share_out(None, 10).weights is None
    assert share_out(100 * 2**30, 2**30).weights is None
    tight = share_out(4 * 2**30, 100 * 2**30)
    assert tight.weights is not None and tight.weights + tight.kept < 4 * 2**30
    with pytest.raises(InputError, match=r"a memory budget of 100 MiB is too small: .* give at least \d+MiB"):
        share_out(100 * 2**20, 2**30)


def test_what_cannot_be_trained_out_of_files_is_said_before_weights_are_read(large):
    recipe = Recipe.build(
        model=str(large), remove="2", repair="lora,steps=2", memory_budget=f"{resident_bytes() + BUDGET // 2}B"
    )
    session = prepare(recipe, resolve(str(large)))
    with pytest.raises(InputError, match="do not fit into the memory budget, so lora cannot train them"):
        load(session)


def test_a_metric_by_gradients_is_refused_where_weights_do_not_fit(large):
    recipe = Recipe.build(
        model=str(large),
        method="one-shot",
        metric="taylor",
        remove="2",
        repair="none",
        memory_budget=f"{resident_bytes() + BUDGET // 2}B",
    )
    prepared = prepare(recipe, resolve(str(large)))
    with pytest.raises(InputError, match="do not fit into the memory budget, so taylor has no gradients"):
        load(prepared)
