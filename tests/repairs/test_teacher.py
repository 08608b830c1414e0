"""What distillation minimises is the divergence from the dense model's outputs."""

import numpy as np
import pytest
import torch
from healing import damage_to

import tiny
from depthcut.ablation.objectives.kl import KL
from depthcut.repairs.training.goals import Teacher, ask_teacher, outcomes


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
