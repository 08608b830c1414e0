"""Answers of a teacher: what plain transformers says of the same tokens, and what a healing reads."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny
from depthcut.calibration import Samples
from depthcut.repairs.training.goals import Teacher

SETTINGS = "teacher-answers,samples=6,length=24,top_k=8,seed=3"


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("dense") / "llama", "llama")


@pytest.fixture
def answers(dense, command, tmp_path):
    command("export", dense, "--to", SETTINGS, "-o", tmp_path / "answers")
    return tmp_path / "answers"


@torch.no_grad()
def test_the_files_hold_what_the_model_answers(dense, answers):
    tokens, index, log_p = (np.load(answers / f"{name}.npy") for name in ("tokens", "teacher_index", "teacher_log_p"))
    assert (tokens.shape, index.shape, log_p.shape) == ((6, 24), (6, 24, 8), (6, 24, 9))
    assert (tokens.dtype, index.dtype, log_p.dtype) == (np.int32, np.int32, np.float32)
    model = AutoModelForCausalLM.from_pretrained(dense).eval()
    expected = model(torch.from_numpy(tokens.astype(np.int64))).logits.log_softmax(dim=-1)
    likeliest = expected.topk(8, dim=-1)
    np.testing.assert_array_equal(index, likeliest.indices.numpy())
    np.testing.assert_allclose(log_p[..., :8], likeliest.values.numpy(), atol=16 * tiny.ROUNDING)
    np.testing.assert_allclose(np.exp(log_p).sum(axis=-1), 1, atol=tiny.ROUNDING)
    said = json.loads((answers / "answers.json").read_text())
    assert (said["top_k"], said["rest"], said["vocabulary"]) == (8, True, tiny.BYTE_VOCABULARY)
    assert said["text"]["num_samples"] == 6 and said["text"]["seed"] == 3


@torch.no_grad()
def test_a_healing_reads_the_same_files(dense, answers):
    """The teacher's own logits are at a distance of 0."""
    tokens = torch.from_numpy(np.load(answers / "tokens.npy").astype(np.int64))
    samples = Samples.packed(tokens, source="", detail="", seed=0, digests=frozenset())
    log_p, index = (np.load(answers / f"teacher_{name}.npy", mmap_mode="r") for name in ("log_p", "index"))
    targets = Teacher(samples, log_p, index, rest=True).targets(2)
    targets.pop("counted")
    logits = AutoModelForCausalLM.from_pretrained(dense).eval()(tokens[2:3]).logits[0]
    losses = Teacher(samples, log_p, index, rest=True).losses(logits, **targets)
    torch.testing.assert_close(losses, torch.zeros(24), atol=tiny.ROUNDING, rtol=0)


def test_only_what_predicts_tokens_is_a_teacher(command, tmp_path):
    reward = tiny.save_headed(tmp_path / "reward", "classes")
    told = command("export", reward, "--to", SETTINGS, "-o", tmp_path / "o", code=2)
    assert "the format teacher-answers holds models that predict tokens, and this one scores a text" in told
