"""Repairs that train: they heal planted damage, and touch nothing that is not theirs."""

import dataclasses
import random
import tempfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from healing import EVERY_KIND, SHORT, damage_to, equal, name, tensors

import tiny
from depthcut.calibration import Samples
from depthcut.model.architectures import FAMILIES
from depthcut.repairs import emulate
from depthcut.repairs.distill import Distill
from depthcut.repairs.lora import LoRA, QLoRA
from depthcut.repairs.partial import Partial
from depthcut.repairs.training.adapters import linear_paths
from depthcut.repairs.training.copies import with_tensors
from depthcut.surgery import apply
from depthcut.types import Unit


@pytest.mark.parametrize("goal", ["lm", "mse", "kd"])
def test_maps_in_place_of_sublayers_are_trained_further(pruned_pair, goal):
    """What a map of the stream cannot tell of the one sublayer, training lets it do about the other."""
    dense, pruned, removed = pruned_pair
    damage = damage_to(dense, removed)
    low_rank = emulate.LowRank(rank=4, train=goal, steps=30, batch_size=4, learning_rate=1e-2)
    solved = dataclasses.replace(low_rank, train="none").repair(damage, pruned).model
    repaired = low_rank.repair(damage, pruned)
    assert repaired.curve[-1][1] < repaired.curve[0][1]
    changed = {n for n, p in repaired.model.named_parameters() if not torch.equal(p, solved.get_parameter(n))}
    assert changed == {n for n, _ in solved.named_parameters() if "emulation." in n}
    assert set(repaired.units) == {"1.attn", "3.ffn"}
    judged = damage.judge("loss" if goal == "lm" else "kl", damage.text)
    assert judged(repaired.model) < judged(solved)


@pytest.fixture(scope="module")
def planted():
    """A model sure of what comes next, text of its own, and a copy whose last block says the opposite."""
    dense = tiny.model(tie_word_embeddings=False)
    with torch.no_grad():
        dense.lm_head.weight.mul_(6)
    wrong = {
        f"model.layers.5.{path}.weight": -dense.get_submodule(f"model.layers.5.{path}").weight
        for path in ("self_attn.o_proj", "mlp.down_proj")
    }
    torch.manual_seed(0)
    first = torch.randint(3, tiny.VOCABULARY, (112, 1))
    ids = dense.generate(
        first, attention_mask=torch.ones_like(first), do_sample=True, top_k=0, max_new_tokens=15, min_new_tokens=15
    )
    text = Samples.packed(ids, source="own", detail="", seed=0, digests=frozenset()).split(96)
    return damage_to(dense, text=text[0], held_out=text[1]), with_tensors(dense, wrong)


class TestHealing:
    @pytest.mark.parametrize(
        "repair",
        [
            LoRA(steps=40, rank=8, learning_rate=1e-2, modules="all"),
            pytest.param(QLoRA(steps=40, rank=8, learning_rate=1e-2, modules="all"), marks=pytest.mark.long),
            Distill(steps=40, rank=8, learning_rate=1e-2, modules="all", top_k=16),
            Distill(steps=40, train="full", learning_rate=3e-3, top_k=16),
            Partial(steps=40, learning_rate=1e-2),
        ],
        ids=name,
    )
    def test_a_damaged_last_block_is_healed(self, planted, repair):
        damage, wrong = planted
        before = damage.judge("kl")(wrong)
        repaired = repair.repair(damage, wrong)
        after = damage.judge("kl")(repaired.model)
        assert after < 0.7 * before
        steps, losses = zip(*repaired.curve, strict=True)
        assert steps == tuple(range(1, 41))
        assert losses[-1] < losses[0]


class TestSideEffects:
    @pytest.fixture(scope="class", params=EVERY_KIND, ids=name)
    def run(self, request, pruned_pair):
        """A repair, what it made, how far it said it was, and the state of everything else before."""
        dense, pruned, removed = pruned_pair
        done = []
        before = state(dense, pruned)
        repaired = request.param.repair(damage_to(dense, removed, advance=done.append), pruned)
        return SimpleNamespace(repair=request.param, healed=repaired.model, done=done, before=before)

    def test_dense_and_pruned_model_stay_bit_for_bit(self, run, pruned_pair):
        dense, pruned, _ = pruned_pair
        after = state(dense, pruned)
        for part, values in run.before.items():
            assert after[part] == values, part

    def test_the_healed_model_is_made_like_the_pruned_one(self, run, pruned_pair):
        _, pruned, _ = pruned_pair
        assert run.healed.config.to_dict() == pruned.config.to_dict()
        assert [type(module) for module in run.healed.modules()] == [type(module) for module in pruned.modules()]
        assert not any(module.training for module in run.healed.modules())
        assert all(parameter.requires_grad for parameter in run.healed.parameters())

    def test_what_is_not_changed_is_shared(self, run, pruned_pair):
        _, pruned, _ = pruned_pair
        healed = dict(run.healed.named_parameters())
        changed = {name for name, old in pruned.named_parameters() if healed[name] is not old}
        assert {name for name, old in pruned.named_parameters() if not torch.equal(healed[name], old)} == changed
        if isinstance(run.repair, Partial):
            last = {name for name in healed if name.startswith(("model.layers.3", "model.layers.4", "model.layers.5"))}
            assert changed == last | {"lm_head.weight"}
        elif getattr(run.repair, "train", "lora") == "lora":
            assert changed == {f"{path}.weight" for path in linear_paths(pruned, FAMILIES["llama"], "ffn")}
        else:
            assert changed == set(healed)

    def test_progress_adds_up_to_the_whole(self, run):
        assert sum(run.done) == pytest.approx(100)

    def test_nothing_is_printed_or_left_behind(self, pruned_pair, tmp_path, monkeypatch, capfd):
        dense, pruned, removed = pruned_pair
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        EVERY_KIND[2].repair(damage_to(dense, removed), pruned)
        assert list(tmp_path.iterdir()) == []
        assert capfd.readouterr() == ("", "")


def state(*models):
    """Everything of models and process that training could change by mistake."""
    tensors = [item for model in models for item in [*model.named_parameters(), *model.named_buffers()]]
    return {
        "values": [values.tolist() for _, values in tensors],
        "objects": [(name, id(values), values.data_ptr(), values.requires_grad) for name, values in tensors],
        "modes": [module.training for model in models for module in model.modules()],
        "configurations": [model.config.to_dict() for model in models],
        "python's random numbers": random.getstate(),
        "numpy's": np.random.get_state()[1].tolist(),
        "torch's": torch.get_rng_state().tolist(),
    }


class TestPrecision:
    @pytest.mark.parametrize("repair", EVERY_KIND, ids=name)
    def test_half_precision_models_train_in_float32_and_stay_half(self, repair):
        dense = tiny.model().to(torch.bfloat16)
        pruned = apply(dense, FAMILIES["llama"], {Unit(1, "attn")})
        repaired = dataclasses.replace(repair, steps=4).repair(damage_to(dense), pruned)
        assert {values.dtype for values in repaired.model.parameters()} == {torch.bfloat16}
        assert all(np.isfinite(loss) for _, loss in repaired.curve)
        assert not equal(tensors(repaired.model), tensors(pruned))


class TestPartial:
    def test_a_tied_head_stays_unless_asked_for(self):
        dense = tiny.model(tie_word_embeddings=True)
        architecture = FAMILIES["llama"]
        head = "model.embed_tokens.weight"
        assert head not in Partial().names(dense, architecture)
        assert head in Partial(tied=True).names(dense, architecture)
        healed = Partial(**SHORT, tied=True).repair(damage_to(dense), dense).model
        assert healed.lm_head.weight is healed.model.embed_tokens.weight
        assert not torch.equal(healed.lm_head.weight, dense.lm_head.weight)

    @pytest.mark.parametrize("family", tiny.REPRESENTATIVE)
    def test_an_untied_head_and_the_last_blocks_are_found(self, family):
        model = tiny.model(family, tie_word_embeddings=False)
        names = Partial(blocks=2).names(model, FAMILIES[family])
        prefixes = tuple(f"{FAMILIES[family].blocks}.{layer}." for layer in (4, 5))
        heads = [each for each in names if not each.startswith(prefixes)]
        assert {model.get_parameter(each) for each in heads} == {*model.get_output_embeddings().parameters()}
        assert len(names) > 8

    def test_more_blocks_than_there_are_is_all(self):
        model = tiny.model(tie_word_embeddings=False)
        names = set(Partial(blocks=99).names(model, FAMILIES["llama"]))
        assert {each for each, _ in model.named_parameters()} - names == {
            "model.embed_tokens.weight",
            "model.norm.weight",
        }
