"""Another reader's answers count as the model's own within rounding, and no further."""

import pytest
import torch

import tiny
from depthcut.export import VerificationError
from depthcut.export.second_reader import ReaderAnswers, compare, verify_with

IDS = tiny.samples(num_samples=1).input_ids


@pytest.fixture(scope="module")
def model():
    return tiny.model("llama")


@pytest.fixture(scope="module")
@torch.no_grad()
def right(model):
    loss = torch.nn.functional.cross_entropy(model(input_ids=IDS).logits[0, :-1], IDS[0, 1:])
    tokens = model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=6, do_sample=False)
    return ReaderAnswers(float(loss), tuple(tokens[0, IDS.shape[1] :].tolist()))


@torch.no_grad()
def check(model, answers):
    compare("the engine", model, IDS, answers)


def test_the_models_own_answers_pass(model, right):
    check(model, right)


@pytest.mark.parametrize("factor", [1.001, 0.999, float("nan"), float("inf")])
def test_another_loss_is_told_with_both_numbers(model, right, factor):
    with pytest.raises(VerificationError, match=f"the engine finds a loss of .* the model in memory {right.loss:.6g}"):
        check(model, ReaderAnswers(right.loss * factor, right.greedy))


@pytest.mark.parametrize("factor", [1.00001, 0.99999])
def test_rounding_of_the_loss_passes(model, right, factor):
    check(model, ReaderAnswers(right.loss * factor, right.greedy))


@pytest.mark.parametrize("step", [0, 3, 5])
def test_another_token_is_told_with_its_step(model, right, step):
    other = (right.greedy[step] + 1) % tiny.VOCABULARY
    greedy = (*right.greedy[:step], other, *right.greedy[step + 1 :])
    with pytest.raises(VerificationError, match=f"{other} for {right.greedy[step]} at step {step + 1}$"):
        check(model, ReaderAnswers(right.loss, greedy))


@torch.no_grad()
def test_two_tokens_that_are_as_likely_may_be_exchanged():
    model = tiny.model("llama", tie_word_embeddings=False)
    best = int(model(input_ids=IDS).logits[0, -1].argmax())
    twin = (best + 1) % tiny.VOCABULARY
    model.lm_head.weight[twin] = model.lm_head.weight[best]
    loss = torch.nn.functional.cross_entropy(model(input_ids=IDS).logits[0, :-1], IDS[0, 1:])
    for token in (best, twin):
        # What follows the exchanged token belongs to another text and is not compared.
        check(model, ReaderAnswers(float(loss), (token, *([0] * 5 if token != min(best, twin) else []))))


def test_a_reader_that_fails_is_named_with_its_last_words(model, tmp_path):
    script = tmp_path / "reader.py"
    script.write_text("raise OSError('no such engine')")
    with pytest.raises(VerificationError, match="the engine cannot read the written model: OSError: no such engine"):
        verify_with("the engine", script, tmp_path, model, IDS)
    script.write_text("")
    with pytest.raises(VerificationError, match="the engine cannot read the written model: exit code 0"):
        verify_with("the engine", script, tmp_path, model, IDS)


def test_a_reader_is_asked_the_same_text_in_the_same_precision(model, tmp_path):
    script = tmp_path / "reader.py"
    script.write_text(
        "import sys; print('{\"problem\": \"it was asked ' + open(sys.argv[2]).read().replace('\"', '') + '\"}')"
    )
    with pytest.raises(VerificationError) as caught:
        verify_with("the engine", script, tmp_path, model, IDS)
    assert str(IDS[0].tolist()) in str(caught.value)
    assert "dtype: float32, device: cpu" in str(caught.value)
