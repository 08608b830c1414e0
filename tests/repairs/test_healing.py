"""Repairs that train: they heal planted damage, touch nothing that is not theirs, and go on after a kill."""

import dataclasses
import gc
import importlib.util
import random
import shutil
import tempfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig

import tiny
from depthcut.ablation.objectives.kl import KL
from depthcut.calibration import Samples
from depthcut.model.architectures import FAMILIES, PRUNED_PREFIX
from depthcut.model.stream import DecoderStream
from depthcut.repairs import REPAIRS, Damage, emulate, parse_repairs
from depthcut.repairs.distill import Distill
from depthcut.repairs.lora import LoRA, QLoRA
from depthcut.repairs.partial import Partial
from depthcut.repairs.training import trainer
from depthcut.repairs.training.adapters import add_adapters, linear_paths, merged_weights, quantise_nf4
from depthcut.repairs.training.copies import copy_to_train, with_tensors
from depthcut.repairs.training.folder import training_folder
from depthcut.repairs.training.goals import Teacher, ask_teacher, outcomes
from depthcut.repairs.training.schedule import Schedule, training_rows
from depthcut.repairs.training.uidl import LoraSettings, find_row
from depthcut.surgery import apply
from depthcut.types import InputError, Unit

SHORT = {"steps": 6, "batch_size": 4}
EVERY_KIND = [
    LoRA(**SHORT, rank=4, learning_rate=1e-2),
    QLoRA(**SHORT, rank=4, learning_rate=1e-2),
    Distill(**SHORT, rank=4, learning_rate=1e-2, top_k=8),
    Distill(**SHORT, train="full", learning_rate=1e-2, top_k=8),
    Partial(**SHORT, learning_rate=1e-2),
]


@pytest.fixture(scope="module", autouse=True)
def quick_collection():
    """accelerate collects garbage before every training; the libraries need not be looked through each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


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


def name(repair):
    return f"{type(repair).__name__}-{getattr(repair, 'train', '')}".strip("-")


def damage_to(dense, removed=frozenset(), family="llama", **changes):
    given = {"text": tiny.samples(12, 12, 1), "held_out": tiny.samples(4, 12, 2), "memory_budget": 2**30}
    return Damage(DecoderStream(dense, FAMILIES[family]), removed, **(given | changes))


@pytest.fixture(scope="module")
def pruned_pair():
    """A dense model, and it without two sublayers."""
    dense = tiny.model()
    removed = frozenset({Unit(1, "attn"), Unit(3, "ffn")})
    return dense, apply(dense, FAMILIES["llama"], removed), removed


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
            QLoRA(steps=40, rank=8, learning_rate=1e-2, modules="all"),
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


class Killed(BaseException):
    """As Ctrl-C, or a signal."""


def killed_after(num_calls):
    calls = iter(range(num_calls))

    def advance(_):
        if next(calls, None) is None:
            raise Killed

    return advance


def tensors(model):
    return {name: values.clone() for name, values in model.state_dict().items()}


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("repair", EVERY_KIND, ids=name)
class TestResuming:
    @pytest.fixture(autouse=True)
    def checkpoint_every_step(self, monkeypatch):
        monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)

    def test_killed_again_and_again_it_ends_with_the_same_weights(self, pruned_pair, repair, tmp_path):
        dense, pruned, removed = pruned_pair
        whole = repair.repair(damage_to(dense, removed), pruned)
        num_kills = 0
        while True:
            try:
                damage = damage_to(dense, removed, folder=tmp_path, advance=killed_after(3))
                again = repair.repair(damage, pruned)
                break
            except Killed:
                num_kills += 1
                # What the Trainer leaves when it is killed while it writes.
                for last in tmp_path.glob("*/checkpoint-*"):
                    half = last.with_name("checkpoint-6")
                    shutil.copytree(last, half)
                    (half / "trainer_state.json").write_text((last / "trainer_state.json").read_text()[:100])
        assert num_kills > 1
        assert equal(tensors(again.model), tensors(whole.model))
        assert again.curve == whole.curve

    def test_a_finished_training_is_not_done_again(self, pruned_pair, repair, tmp_path, monkeypatch):
        dense, pruned, removed = pruned_pair
        damage = damage_to(dense, removed, folder=tmp_path)
        whole = repair.repair(damage, pruned)
        monkeypatch.setattr(trainer.HealingTrainer, "compute_loss", None)
        assert equal(tensors(repair.repair(damage, pruned).model), tensors(whole.model))


def test_another_training_does_not_go_on_from_its_files(pruned_pair, tmp_path):
    dense, pruned, _ = pruned_pair
    damage = damage_to(dense, folder=tmp_path)
    mask = torch.ones(12, 12, dtype=torch.int64).tril(8)
    trainings = [
        (LoRA(), damage, pruned),
        (LoRA(rank=3), damage, pruned),
        (QLoRA(), damage, pruned),
        (LoRA(), dataclasses.replace(damage, seed=1), pruned),
        (LoRA(), dataclasses.replace(damage, batch_size=1), pruned),
        (LoRA(), dataclasses.replace(damage, text=tiny.samples(12, 12, 5)), pruned),
        (LoRA(), dataclasses.replace(damage, text=dataclasses.replace(damage.text, attention_mask=mask)), pruned),
        (LoRA(), damage, with_tensors(pruned, {"model.norm.weight": pruned.model.norm.weight + 1})),
        (LoRA(), damage, dense),
    ]
    for count, (schedule, its_damage, model) in enumerate(trainings, start=1):
        with training_folder(its_damage, schedule, model) as folder:
            assert len(list(tmp_path.iterdir())) == count
        with training_folder(its_damage, schedule, model) as same:
            assert same == folder


class TestText:
    @pytest.mark.parametrize("repair", EVERY_KIND, ids=name)
    def test_pads_change_nothing(self, pruned_pair, repair):
        dense, pruned, removed = pruned_pair
        samples = tiny.samples(12, 12, 1)

        def healed(fill, side):
            pads = torch.full((12, 4), fill)
            none, zeros = torch.ones_like(samples.input_ids), torch.zeros_like(pads)
            order = (lambda *parts: torch.cat(parts[::-1], dim=1)) if side == "left" else lambda *p: torch.cat(p, dim=1)
            padded = dataclasses.replace(
                samples, input_ids=order(samples.input_ids, pads), attention_mask=order(none, zeros)
            )
            return tensors(repair.repair(damage_to(dense, removed, text=padded), pruned).model)

        without = tensors(repair.repair(damage_to(dense, removed), pruned).model)
        for side in ("right", "left"):
            assert equal(healed(0, side), healed(50, side))
        if getattr(repair, "train", "") == "full" or isinstance(repair, Partial):  # without dropout
            for values, expected in zip(healed(0, "right").values(), without.values(), strict=True):
                torch.testing.assert_close(values, expected, atol=1e-4, rtol=1e-3)

    @pytest.mark.parametrize("repair", [EVERY_KIND[3], EVERY_KIND[4]], ids=name)
    def test_the_size_of_the_pieces_weighs_nothing(self, pruned_pair, repair):
        dense, pruned, removed = pruned_pair
        samples = tiny.samples(12, 12, 1)
        mask = (torch.arange(12) < torch.arange(2, 14)[:, None]).long()
        uneven = dataclasses.replace(samples, attention_mask=mask)
        found = [repair.repair(damage_to(dense, removed, text=uneven, batch_size=size), pruned) for size in (1, 3, 4)]
        for other in found[1:]:
            assert [loss for _, loss in other.curve] == pytest.approx([loss for _, loss in found[0].curve], rel=1e-4)

    def test_every_pass_over_the_text_has_each_sequence_once(self):
        rows = training_rows(tiny.samples(5), 12, seed=3).tolist()
        assert sorted(rows[:5]) == sorted(rows[5:10]) == [0, 1, 2, 3, 4] and len(rows) == 12
        assert rows[:5] != rows[5:10]
        assert (
            rows
            == training_rows(tiny.samples(5), 12, seed=3).tolist()
            != training_rows(tiny.samples(5), 12, 4).tolist()
        )

    def test_a_schedule_shorter_than_its_warmup_still_falls(self):
        assert (
            Schedule().warmup_steps == 100
            and Schedule(steps=50).warmup_steps == 5
            and Schedule(steps=3).warmup_steps == 0
        )

    def test_pieces_divide_a_batch_evenly(self):
        assert [Schedule(batch_size=16).sequences_at_once(limit) for limit in (1, 3, 4, 15, 16, 99)] == [
            1,
            2,
            4,
            8,
            16,
            16,
        ]
        assert Schedule(batch_size=7).sequences_at_once(4) == 1


class TestMerge:
    @pytest.mark.parametrize("family", tiny.REPRESENTATIVE)
    @torch.no_grad()
    def test_the_merged_model_is_the_adapter_model(self, family):
        dense = tiny.model(family)
        architecture = FAMILIES[family]
        sublayers = tiny.removals(architecture)
        pruned = apply(dense, architecture, sublayers.get("attn", sublayers["block"]))
        paths = linear_paths(pruned, architecture, "all")
        blocks = architecture.block_list(pruned)
        assert all(isinstance(pruned.get_submodule(path), nn.Linear) or "Conv1D" in str(pruned) for path in paths)
        model = copy_to_train(pruned)
        add_adapters(model, paths, rank=4, dropout=0.5)
        generator = torch.Generator().manual_seed(0)
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        ids = tiny.samples().input_ids
        merged = with_tensors(pruned, merged_weights(pruned, model.eval(), paths))
        expected = model(input_ids=ids).logits
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)
        assert (merged(input_ids=ids).logits - pruned(input_ids=ids).logits).abs().max() > 0.05
        assert len(blocks) == (tiny.NUM_BLOCKS if "attn" in sublayers else tiny.NUM_BLOCKS - 2)

    @pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
    @torch.no_grad()
    def test_nf4_layers_stay_readable_after_they_ran_in_eval_mode(self, family):
        from bitsandbytes.functional import dequantize_4bit

        pruned = tiny.model(family, hidden_size=64, intermediate_size=128, n_embd=64, n_inner=128, head_dim=16)
        paths = linear_paths(pruned, FAMILIES[family], "all")
        model = copy_to_train(pruned).eval()
        quantise_nf4(model, paths)

        def read():
            layers = (model.get_submodule(path) for path in paths)
            return {
                path: dequantize_4bit(layer.weight, layer.weight.quant_state)
                for path, layer in zip(paths, layers, strict=True)
            }

        before = read()
        ids = tiny.samples().input_ids
        logits = model(input_ids=ids).logits
        for path, values in read().items():
            assert torch.equal(values, before[path])
            weight = pruned.get_submodule(path).weight
            weight = weight.T if family == "gpt2" else weight
            assert (values - weight).abs().max() < 0.2 * weight.abs().max()
        transposed = {f"{path}.weight": values.T if family == "gpt2" else values for path, values in before.items()}
        expected = with_tensors(pruned, transposed)(input_ids=ids).logits
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)

    def test_qlora_on_two_sequences_of_64_tokens(self, pruned_pair):
        dense, pruned, removed = pruned_pair
        damage = damage_to(dense, removed, text=tiny.samples(2, 64, 1))
        repaired = QLoRA(steps=8, batch_size=2, rank=4, learning_rate=1e-2).repair(damage, pruned)
        assert repaired.curve[-1][1] < repaired.curve[0][1]
        assert repaired.model.dtype == torch.float32

    def test_a_merge_that_changes_the_loss_does_not_pass(self, pruned_pair, monkeypatch):
        from depthcut.repairs.training import adapters

        dense, pruned, removed = pruned_pair
        wrong = lambda *given: {name: values * 1.5 for name, values in merged_weights(*given).items()}
        monkeypatch.setattr(adapters, "merged_weights", wrong)
        with pytest.raises(AssertionError, match="merging LoRA changed the loss from"):
            LoRA(**SHORT, rank=4).repair(damage_to(dense, removed), pruned)


class TestTeacher:
    @pytest.fixture
    def asked(self, pruned_pair, tmp_path):
        dense, pruned, removed = pruned_pair
        damage = damage_to(dense, removed)
        with torch.no_grad():
            logits = [model(input_ids=damage.text.input_ids).logits for model in (dense, pruned)]

        def ask(top_k):
            folder = tmp_path / str(top_k)
            folder.mkdir()
            teacher = ask_teacher(damage, torch.arange(12), top_k, folder)
            targets = [teacher.targets(row) for row in range(12)]
            assert all(row.pop("counted").all() for row in targets)
            stacked = {name: torch.cat([row[name] for row in targets]) for name in targets[0]}
            return teacher, stacked

        return ask, [each.flatten(0, 1) for each in logits]

    @pytest.mark.parametrize("top_k", [tiny.VOCABULARY, 10 * tiny.VOCABULARY])
    def test_all_tokens_kept_is_the_whole_divergence(self, asked, top_k):
        ask, (p, q) = asked
        teacher, targets = ask(top_k)
        expected = KL().at_positions(KL().reference(p), q, torch.empty(0))
        torch.testing.assert_close(teacher.losses(q, **targets), expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("top_k", [1, 8, tiny.VOCABULARY - 1])
    def test_the_rest_counts_as_one_outcome(self, asked, top_k):
        ask, (p, q) = asked
        teacher, targets = ask(top_k)
        found = teacher.losses(q, **targets)
        p, q = p.double().softmax(-1).numpy(), q.double().softmax(-1).numpy()
        order = np.argsort(-p, axis=-1)
        p, q = np.take_along_axis(p, order, -1), np.take_along_axis(q, order, -1)
        p = np.concatenate([p[:, :top_k], p[:, top_k:].sum(-1, keepdims=True)], -1)
        q = np.concatenate([q[:, :top_k], q[:, top_k:].sum(-1, keepdims=True)], -1)
        np.testing.assert_allclose(found.numpy(), (p * np.log(p / q)).sum(-1), atol=1e-5, rtol=1e-4)

    def test_it_is_never_more_than_the_whole_and_nothing_for_the_dense_model(self, asked):
        ask, (p, q) = asked
        whole = KL().at_positions(KL().reference(p), q, torch.empty(0))
        for top_k in (1, 4, 16, 64):
            teacher, targets = ask(top_k)
            assert bool((teacher.losses(q, **targets) <= whole + 1e-5).all())
            assert float(teacher.losses(p, **targets).abs().max()) < 1e-5

    def test_a_sure_answer_leaves_a_rest_and_a_gradient_that_are_finite(self):
        logits = torch.tensor([[200.0, 0.0, 0.0, -50.0]], requires_grad=True)
        log_p = outcomes(logits.detach().log_softmax(-1), torch.tensor([[0, 1]]), rest=True)
        assert bool(torch.isfinite(log_p).all()) and log_p.exp().sum() == 1
        teacher = Teacher(tiny.samples(), log_p.numpy(), np.zeros((1, 2)), rest=True)
        teacher.losses(logits, log_p=log_p, index=torch.tensor([[0, 1]])).sum().backward()
        assert bool(torch.isfinite(logits.grad).all())


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


class TestPreset:
    @pytest.mark.parametrize(
        ("model_type", "hidden_size", "rank", "rate"),
        [
            ("llama", 4096, 2, 3e-4),
            ("llama", 5120, 64, 3e-4),
            ("llama", 8192, 8, 3e-5),
            ("mistral", 4096, 4, 3e-6),
            ("qwen2", 4096, 64, 3e-4),
            ("phi3", 3072, 64, 2e-4),
            ("llama", 576, 64, 3e-4),
            ("gemma2", 2304, 64, 3e-4),
        ],
    )
    def test_rank_and_rate_are_uidls(self, model_type, hidden_size, rank, rate):
        config = AutoConfig.for_model(model_type, hidden_size=hidden_size)
        row = find_row(config)
        assert (row.rank, row.learning_rate) == (rank, rate)
        config.__class__ = type("DepthcutConfig", (type(config),), {"model_type": PRUNED_PREFIX + model_type})
        assert find_row(config) == row
        assert LoraSettings(rank=5).rank_for(config) == 5 and LoraSettings(learning_rate=1.0).rate_for(config) == 1.0

    def test_the_rest_of_the_recipe_is_uidls(self):
        recipe = REPAIRS.find("qlora").make()
        values = recipe.steps, recipe.batch_size, recipe.warmup, recipe.dropout, recipe.modules
        assert values == (5000, 16, 100, 0.05, "ffn")


class TestRefusals:
    def test_no_sublayer_left_to_adapt(self):
        dense = tiny.model()
        pruned = apply(dense, FAMILIES["llama"], {Unit(layer, "ffn") for layer in range(tiny.NUM_BLOCKS)})
        with pytest.raises(
            InputError, match="no ffn is left to put LoRA on; give other modules, for example modules=all"
        ):
            LoRA(**SHORT).repair(damage_to(dense), pruned)

    @pytest.mark.parametrize(
        ("repair", "missing"),
        [("lora", "peft"), ("qlora", "peft and bitsandbytes"), ("distill", "peft")],
    )
    def test_a_missing_package_is_named_before_weights_load(self, monkeypatch, repair, missing):
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        ((_, parsed),) = parse_repairs(repair)
        with pytest.raises(
            InputError, match=rf"healing needs {missing}, which is not here; run: pip install depthcut\[heal\]"
        ):
            parsed.check(FAMILIES["llama"], tiny.config("llama"))

    @pytest.mark.parametrize("text", ["partial", "distill,train=full"])
    def test_whole_weights_need_no_further_package(self, monkeypatch, text):
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        ((_, parsed),) = parse_repairs(text)
        parsed.check(FAMILIES["llama"], tiny.config("llama"))

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("lora,rank=0", "lora cannot be set so: rank.*greater than or equal to 1"),
            ("lora,dropout=1", "dropout.*less than 1"),
            ("qlora,modules=mlp", "modules.*'ffn', 'attn' or 'all'"),
            ("distill,train=some", "train.*'lora' or 'full'"),
            ("partial,learning_rate=0", "learning_rate.*greater than 0"),
            ("partial,steps=many", "steps.*valid integer"),
            ("lora,ranks=3", "unknown setting of lora 'ranks'; did you mean rank"),
        ],
    )
    def test_settings_out_of_range(self, text, words):
        with pytest.raises(InputError, match=words):
            parse_repairs(text)

    def test_settings_are_read(self):
        ((given, parsed),) = parse_repairs("distill,train=full,top_k=32,steps=7,learning_rate=1e-5")
        assert given == "distill"
        assert parsed == Distill(train="full", top_k=32, steps=7, learning_rate=1e-5)
