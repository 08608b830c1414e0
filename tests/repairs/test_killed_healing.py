"""A training that is killed goes on, and another one does not go on from its files."""

import dataclasses
import shutil

import pytest
import torch
from healing import EVERY_KIND, damage_to, equal, name, tensors

import tiny
from depthcut.repairs.lora import LoRA, QLoRA
from depthcut.repairs.training import trainer
from depthcut.repairs.training.copies import with_tensors
from depthcut.repairs.training.folder import training_folder


class Killed(BaseException):
    """As Ctrl-C, or a signal."""


def killed_after(num_calls):
    calls = iter(range(num_calls))

    def advance(_):
        if next(calls, None) is None:
            raise Killed

    return advance


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
