"""Models that score or embed a text go through everything that those go through that predict tokens."""

import json

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

import depthcut
import tiny
from depthcut.ablation.objectives import OF_HEAD, find_objective
from depthcut.model.heads import head_of, settle_head
from depthcut.model.stream import DecoderStream
from depthcut.results import Measurement, read_list
from depthcut.run import on_model
from depthcut.types import InputError

DISTANCES = {"classes": "logit_distance", "embedding": "embedding_distance"}
SHORT = [
    *("--calibration-samples", 4, "--calibration-length", 16, "--evaluation-samples", 2, "--evaluation-length", 16),
    *("--repair-samples", 32, "--device", "cpu"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("heads")
    return {
        "classes": tiny.save_headed(root / "reward", "classes"),
        "embedding": tiny.save_headed(root / "embedder", "embedding", "mean_tokens"),
    }


@pytest.mark.usefixtures("quick_reload")
@pytest.mark.parametrize("head", tiny.HEADS)
def test_the_whole_way_by_the_command_line(folders, head, command, tmp_path):
    """Scored, searched, pruned, repaired, measured, written again, and loaded by plain transformers."""
    dense, out = folders[head], tmp_path / "pruned"
    assert "block" in command("score", dense, *SHORT[:4], "-o", tmp_path / "scores")
    command("search", dense, "--remove", 2, "--unit", "sublayer", *SHORT[:4], "-o", tmp_path / "path")
    printed = command("prune", dense, "--remove", 2, "--unit", "block", *SHORT, "--no-speed", "-o", out)
    assert "perplexity" not in printed.lower() and "greedy tokens" not in printed
    plan = json.loads((out / "plan.json").read_text())
    assert plan["objective"] == OF_HEAD[head]
    repair = json.loads((out / "repair.json").read_text())[0]
    assert (repair["objective"], repair["kept"]) == (OF_HEAD[head], True)
    measured = {(m.model, m.name): m.value for m in read_list(Measurement, out / "results.json")}
    assert measured["pruned", DISTANCES[head]] > 0
    assert not {"perplexity", "loss", "kl_to_dense"} & {name for _, name in measured}
    for page in ("report.html", "README.md"):
        text = (out / page).read_text(encoding="utf-8")
        body = text[text.find("<body") :] if page.endswith("html") else text
        assert "erplexity" not in body.partition("<script")[0], page
    loaded = tiny.HEADS[head].from_pretrained(out).eval()
    assert loaded.config.num_hidden_layers == 4
    ids = torch.arange(3, 19)[None]
    command("export", out, "--to", "hf", "-o", tmp_path / "again")
    again = tiny.HEADS[head].from_pretrained(tmp_path / "again").eval()
    with torch.no_grad():
        assert torch.equal(loaded(ids)[0], again(ids)[0])
    printed = command("eval", out, "--dense", dense, *SHORT[4:8])
    assert "perplexity" not in printed.lower() and "to dense" in printed
    assert "Prompt, speed-up" in printed and "Decoding" not in printed


@pytest.mark.usefixtures("read_afresh")
@pytest.mark.parametrize("head", tiny.HEADS)
def test_sublayers_go_too_and_load_in_a_fresh_process(folders, head, command, tmp_path):
    """`depthcut remove` reloads what it wrote in a fresh process, through the code that lies beside it."""
    command("remove", folders[head], "--units", "1.attn,3.ffn", *SHORT[4:8], "--no-speed", "-o", tmp_path / "out")
    written = tiny.HEADS[head].from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    dense = tiny.HEADS[head].from_pretrained(folders[head]).eval()
    removed = on_model.remove(dense, "1.attn,3.ffn")
    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        assert torch.equal(written(ids)[0], removed(ids)[0])
        assert not torch.equal(written(ids)[0], dense(ids)[0])


@pytest.mark.usefixtures("quick_reload")
def test_what_belongs_to_sentence_transformers_comes_along(folders, command, tmp_path):
    command("remove", folders["embedding"], "--units", "2", *SHORT[4:8], "--no-speed", "-o", tmp_path / "out")
    for name in ("modules.json", "1_Pooling/config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folders["embedding"] / name).read_bytes()


@pytest.mark.parametrize("pooling", ["lasttoken", "mean_tokens"])
@torch.no_grad()
def test_an_embedding_at_a_position_is_that_of_the_text_that_ends_there(tmp_path, pooling):
    model = AutoModel.from_pretrained(tiny.save_headed(tmp_path / "m", "embedding", pooling)).eval()
    stream = DecoderStream(model, depthcut.resolve(str(tmp_path / "m")).architecture)
    ids = torch.arange(3, 15)[None]
    batch = stream.prepare(ids)
    found = next(iter(stream.logits(batch, stream.run(batch))))[1]
    for end in (1, 7, 12):
        hidden = model(ids[:, :end]).last_hidden_state
        alone = hidden[:, -1] if pooling == "lasttoken" else hidden.mean(dim=1)
        torch.testing.assert_close(found[:, end - 1], alone, atol=tiny.ROUNDING, rtol=tiny.ROUNDING)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi", "falcon", "opt", "gemma3_text", "qwen3_moe"])
@torch.no_grad()
def test_a_score_at_a_position_is_that_of_the_text_that_ends_there(family):
    model = tiny.headed("classes", family)
    stream = DecoderStream(model, on_model.source_of(model).architecture)
    ids = torch.arange(3, 15)[None]
    batch = stream.prepare(ids)
    found = next(iter(stream.logits(batch, stream.run(batch))))[1]
    for end in (1, 7, 12):
        torch.testing.assert_close(found[:, end - 1], model(ids[:, :end]).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("head", tiny.HEADS)
@torch.no_grad()
def test_the_objective_is_the_formula_on_whole_models(head):
    model = tiny.headed(head)
    ids = torch.randint(3, 200, (3, 12), generator=torch.Generator().manual_seed(0))
    plan = on_model.search(model, ids, budget=1, method="greedy,swap=false,strategy=exhaustive", unit="block")
    pruned = on_model.remove(model, plan.removed)
    if head == "embedding":
        given = [torch.nn.functional.normalize(each(ids).last_hidden_state, dim=-1) for each in (model, pruned)]
        expected = float((1 - (given[0] * given[1]).sum(-1)).mean())
    else:
        given = [each.score(each.model(ids).last_hidden_state) for each in (model, pruned)]
        expected = float((given[0] - given[1]).square().mean())
    assert plan.steps[0].objective == pytest.approx(expected, rel=1e-4)
    measured = {m.name: m for m in on_model.compare(model, pruned, ids)}[DISTANCES[head]]
    assert measured.value == pytest.approx(expected, rel=1e-4)
    assert measured.unit == find_objective(OF_HEAD[head]).measure


def test_another_pooling_is_refused(tmp_path):
    model = AutoModel.from_pretrained(tiny.save_headed(tmp_path / "m", "embedding", "cls_token"))
    with pytest.raises(
        InputError, match="pools by pooling_mode_cls_token; depthcut compares the last token's or the mean"
    ):
        on_model.compare(model, model, torch.arange(3, 19)[None])


def test_a_published_embedding_model_names_a_causal_class(tmp_path):
    """Qwen3-Embedding does; what tells is the file of sentence-transformers beside it."""
    config = tiny.config("qwen3")
    config.architectures = ["Qwen3ForCausalLM"]
    settle_head(config, tmp_path, ())
    assert head_of(config) == "tokens"
    (tmp_path / "modules.json").write_text("[]")
    settle_head(config, tmp_path, ())
    assert config.architectures == ["Qwen3Model"]


def test_a_causal_model_may_name_its_base_class(tmp_path):
    """Some old checkpoints do; their tensors carry the prefix of a model with a head, which is the embedding."""
    config = tiny.config("gpt2", tie_word_embeddings=True)
    config.architectures = ["GPT2Model"]
    settle_head(config, tmp_path, ["transformer.h.0.ln_1.weight"])
    assert head_of(config) == "tokens"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--objective", "kl"], "objective 'kl' is about models of another kind, and this one scores a text"),
        (["--method", "one-shot,metric=taylor"], "taylor reads gradients of the next token's loss"),
        (["--repair", "lora,steps=1"], "the repair lora trains on tokens that follow"),
        (["--export", "gguf"], "the format gguf holds models that predict tokens"),
        (["--calibration", "self"], "writes no text; name a SOURCE other than self"),
        (["--generation"], "ask for the next token"),
    ],
)
def test_what_needs_tokens_is_refused(folders, options, told, command, tmp_path):
    assert told in command("prune", folders["classes"], "--remove", 1, *options, "-o", tmp_path / "o", code=2)


def test_what_is_measured_together_ends_alike(folders, command, tmp_path):
    causal = tiny.save(tmp_path / "causal", "qwen3")
    told = command("eval", folders["classes"], "--dense", causal, "--no-speed", code=2)
    assert "it scores a text (sequence classification), and that predicts tokens; name its dense model" in told
    told = command("eval", folders["classes"], "--dense", folders["classes"], "--generation", code=2)
    assert "tasks and generation are about models that predict tokens" in told


def test_objectives_of_heads_are_refused_on_tokens():
    with pytest.raises(InputError, match="'class-logits' is about .* this one predicts tokens"):
        on_model.search(tiny.model(), torch.arange(3, 19)[None], budget=1, objective="class-logits")


def test_attentions_that_look_both_ways_are_refused():
    config = tiny.config("gemma3_text", use_bidirectional_attention=True)
    with pytest.raises(InputError, match="look both ways"):
        on_model.remove(AutoModel.from_config(config), 1)
    assert on_model.remove(AutoModelForCausalLM.from_config(tiny.config("gemma3_text")), 1)


@pytest.mark.parametrize("head", tiny.HEADS)
def test_doctor_and_dry_run(folders, head, command, tmp_path):
    told = command("doctor", folders[head], "--device", "cpu")
    assert {"classes": "scores a text", "embedding": "embeds a text"}[head] in told
    assert "not distill: the repair distill trains on tokens that follow" in " ".join(told.split())
    dry = command("prune", folders[head], "--remove", 1, *SHORT, "--dry-run", "-o", tmp_path / "o")
    assert "perplexity" not in (told + dry).lower()
