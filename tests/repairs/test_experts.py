"""Repair of experts: a planted change is found, one that few tokens reach is left alone, every layout is read alike."""

import pytest
import torch
from torch import nn

import tiny
from depthcut.export import hf
from depthcut.model.architectures import find_architecture
from depthcut.model.load import resolve
from depthcut.model.paging import Pager
from depthcut.model.stream import DecoderStream
from depthcut.repairs import Damage, repair_and_judge
from depthcut.repairs.experts import inner, routing
from depthcut.repairs.projections import Weight, calls_of, is_experts, maps_that_read
from depthcut.repairs.refit import LinearMap, Refit
from depthcut.repairs.writers import find_writers
from depthcut.surgery import apply
from depthcut.types import Unit

BLOCK = frozenset({Unit(3, "attn"), Unit(3, "ffn")})
NO_RIDGE = (1e-12,)
ALL_EXPERTS = {"decoder_sparse_step": 1, "mlp_only_layers": [], "first_k_dense_replace": 0, "moe_layers": [*range(6)]}
"""Experts in every block, whatever a family calls that."""
FAMILIES = {
    "mixtral": ("mlp.gate.weight", "mlp.experts.gate_up_proj"),
    "qwen3_moe": ("mlp.experts.gate_up_proj", "mlp.gate.weight"),
    "qwen2_moe": (
        "mlp.experts.gate_up_proj",
        "mlp.gate.weight",
        "mlp.shared_expert.gate_proj.weight",
        "mlp.shared_expert.up_proj.weight",
        "mlp.shared_expert_gate.weight",
    ),
    "deepseek_v3": (
        "mlp.experts.gate_up_proj",
        "mlp.gate.weight",
        "mlp.shared_experts.gate_proj.weight",
        "mlp.shared_experts.up_proj.weight",
    ),
    "gpt_oss": ("mlp.experts.gate_up_proj", "mlp.router.weight"),
    "granitemoeshared": (
        "block_sparse_moe.experts.gate_up_proj",
        "block_sparse_moe.router.weight",
        "shared_mlp.input_linear.weight",
    ),
    "llama4_text": (
        "feed_forward.experts.gate_up_proj",
        "feed_forward.router.weight",
        "feed_forward.shared_expert.gate_proj.weight",
        "feed_forward.shared_expert.up_proj.weight",
    ),
}
"""What reads the stream in a block with experts, by family."""


def make(family, **changes):
    shared = {} if family == "mixtral" else ALL_EXPERTS
    # Of Llama 4's models each token reaches one.
    each = {"num_experts_per_tok": 1} if family == "llama4_text" else {}
    return tiny.model(family, **shared | each | changes)


def damage(model, removed=BLOCK, sequences=32):
    stream = DecoderStream(model, find_architecture(model.config))
    return Damage(stream, frozenset(removed), tiny.samples(sequences, 24), tiny.samples(6, 24, seed=5), 2**30)


def cut(given):
    return apply(given.dense.model, given.dense.architecture, given.removed)


def block_of(model, index=2):
    """A block, its branch with experts, and the module of these."""
    architecture = find_architecture(model.config)
    block = architecture.block_list(model)[index]
    return block, architecture.branches["ffn"].of(block), next(filter(is_experts, block.modules()))


def run_of(model, index=2):
    """Runs a block on a random stream, which is returned too."""
    stream = DecoderStream(model, find_architecture(model.config))
    batch = stream.prepare(tiny.samples().input_ids)
    return lambda: stream.run(batch, start=2 * index, stop=2 * index + 2, stream=batch.embedded)


@torch.no_grad()
@pytest.mark.parametrize("top_k", [1, 2])
def test_a_planted_change_of_an_expert_is_found(top_k):
    """One expert of the pruned model is a known linear map of the dense one; block 3 adds nothing, and goes."""
    model = tiny.model("mixtral", num_experts_per_tok=top_k)
    model.model.layers[3].self_attn.o_proj.weight.zero_()
    model.model.layers[3].mlp.experts.down_proj.zero_()
    given = damage(model, sequences=64)
    pruned = cut(given)
    experts = pruned.model.layers[2].mlp.experts
    planted, change = experts.down_proj, torch.zeros(4, 32, 48)
    generator = torch.Generator().manual_seed(0)
    change[2] = 0.3 * torch.randn(32, 32, generator=generator) @ planted[2]
    experts.down_proj = nn.Parameter(planted + change, requires_grad=False)
    refit = Refit(reads=False, ahead=False, ridges=NO_RIDGE)
    before = given.judge("kl")(pruned)
    repaired = refit.repair(given, pruned)
    found = repaired.model.model.layers[2].mlp.experts.down_proj - experts.down_proj
    assert torch.equal(experts.down_proj, planted + change)
    if top_k == 1:
        torch.testing.assert_close(found, -change, atol=1e-4, rtol=1e-3)
        assert repaired.units["2.ffn"] == pytest.approx(0, abs=tiny.ROUNDING)
        assert given.judge("kl")(repaired.model) < tiny.ROUNDING < before
    else:
        # Experts that share tokens with it take a part of it.
        assert given.judge("kl")(repaired.model) < 0.1 * before


@torch.no_grad()
def test_an_expert_that_few_tokens_reach_is_left_alone_and_counted():
    model = make("gpt_oss")
    for layer in model.model.layers:
        layer.mlp.router.bias[3] = -100.0
    given = damage(model)
    pruned = cut(given)
    repaired, record = repair_and_judge("refit", Refit(reads=False), given, pruned)
    tried = record.settings["experts_left_alone"]
    assert tried > 0 and record.settings["experts_solved"] == 3 * tried
    changed = [
        (new.mlp.experts.down_proj != old.mlp.experts.down_proj).any(dim=(1, 2)).tolist()
        for new, old in zip(repaired.model.layers, pruned.model.layers, strict=True)
    ]
    assert [True, True, True, False] in changed and not any(experts[3] for experts in changed)

    none = Refit(reads=False, tokens_per_input=100.0).repair(given, pruned)
    assert none.settings["experts_solved"] == 0
    assert all(
        torch.equal(new.mlp.experts.down_proj, old.mlp.experts.down_proj)
        for new, old in zip(none.model.model.layers, pruned.model.layers, strict=True)
    )


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_what_reads_and_writes_is_found_and_computes_what_the_block_does(family):
    model = make(family)
    block, branch, experts = block_of(model)
    names = {id(module): name for name, module in block.named_modules()}
    run = run_of(model)
    with maps_that_read([getattr(block, name) for name in (branch.core, *branch.beside)]) as readers:
        run()
    assert tuple(sorted(f"{names[id(weight.module)]}.{weight.name}" for weight in readers)) == tuple(
        sorted(FAMILIES[family])
    )

    writers = find_writers(block, branch, 32, run)
    shared = [names[id(module)] for module in writers if module is not experts]
    assert experts in writers and len(shared) == any("shared" in name for name in FAMILIES[family])
    assert all(name.endswith(("down_proj", "output_linear")) for name in shared)
    with calls_of([experts]) as calls:
        run()
    given, index, weights = routing(calls[0])
    down, bias = Weight(experts, "down_proj").matrix, getattr(experts, "down_proj_bias", None)
    found = torch.zeros(len(given), 32)
    for expert in range(4):
        tokens, place = torch.where(index == expert)
        wrote = inner(experts, expert, given[tokens]) @ down[expert].T + (0 if bias is None else bias[expert])
        found.index_add_(0, tokens, wrote * weights[tokens, place, None])
    wrote = calls[0].returned.view(-1, *found.shape).sum(dim=0)
    torch.testing.assert_close(found, wrote, atol=tiny.ROUNDING, rtol=tiny.ROUNDING)


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_of_every_layout_are_repaired_written_and_read_again(family, tmp_path, monkeypatch):
    tiny.reload_in_process(monkeypatch)
    monkeypatch.setattr(hf, "GREEDY_TOKENS", 4)
    given = damage(make(family), sequences=64)
    pruned = cut(given)
    kept = [(each, each.clone()) for model in (given.dense.model, pruned) for each in model.parameters()]
    repaired, record = repair_and_judge("refit", Refit(), given, pruned)
    assert record.kept and record.after < 0.9 * record.before
    assert "2.ffn" in record.units
    assert record.settings["experts_solved"] > 0
    assert all(torch.equal(each, before) for each, before in kept)
    changed = {
        name.rpartition("layers.")[2]
        for (name, new), (_, old) in zip(repaired.named_parameters(), pruned.named_parameters(), strict=True)
        if new is not old
    }
    assert any("experts.down_proj" in name for name in changed), changed
    tmp_path.joinpath("out").mkdir()
    hf.write_directory(repaired, tiny.tokenizer(), tmp_path / "out")
    hf.verify_directory(tmp_path / "out", repaired, given.held_out.input_ids[:1])
    again = resolve(str(tmp_path / "out")).load_model("cpu").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in repaired.state_dict().items())


def test_a_map_of_what_experts_gave_is_folded_into_them():
    given = damage(make("mixtral"))
    pruned = cut(given)
    repaired, record = repair_and_judge("linear", LinearMap(), given, pruned)
    assert record.kept and record.after < record.before and record.settings["experts_solved"] == 4
    assert repaired.model.layers[2].mlp.experts.down_proj is not pruned.model.layers[2].mlp.experts.down_proj


def test_a_model_in_files_is_repaired_alike(tmp_path):
    """Experts that are brought into memory as they run, and written anew beside the others."""
    source = resolve(str(tiny.save(tmp_path / "dense", "mixtral")))
    refit, repaired = Refit(patience=1), []
    for pager in (None, Pager(0)):
        given = damage(source.load_model("cpu", pager))
        repaired.append(refit.repair(given, cut(given)))
    in_memory, paged = repaired
    assert paged.settings == in_memory.settings and paged.settings["experts_solved"] > 0
    tensors = paged.model.state_dict()
    for name, tensor in in_memory.model.state_dict().items():
        torch.testing.assert_close(tensors[name], tensor, atol=2e-4, rtol=2e-4, msg=name)
