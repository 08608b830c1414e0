"""Multiple-choice questions: read, tokenised, and judged as a plain forward pass of each answer judges them."""

import json

import pytest
import torch

import tiny
from depthcut.ablation.ablation import Ablation
from depthcut.calibration import check_questions, parse_source, sample_questions
from depthcut.calibration.packing import opening_ids
from depthcut.model.architectures import find_architecture
from depthcut.model.bypass import bypass
from depthcut.model.stream import DecoderStream
from depthcut.run.prune import prune_model
from depthcut.run.recipe import Recipe
from depthcut.types import InputError, Unit

ROWS = [
    {"question": "Which is a fruit?", "options": ["a stone", "an apple", "a very long piece of rope"], "answer": 1},
    {"question": "Two and two?", "options": ["four", "five"], "answer": "A"},
    {"question": "MMLU's form?", "choices": ["no", "yes", "perhaps", "never"], "answer": 1, "subject": "forms"},
    {
        "question": "ARC's form, with numbers as labels?",
        "choices": {"text": ["maybe not", "yes"], "label": ["1", "2"]},
        "answerKey": "2",
    },
    {"question": "The last of them?", "options": ["this", "that", "another one"], "answer": "C"},
]
RIGHT = [1, 0, 1, 1, 2]


@pytest.fixture
def file(tmp_path):
    def write(rows, name="questions.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def sampled(path, tokenizer, num_questions=5, max_length=200, seed=0):
    source = parse_source(path)
    return sample_questions(source, tokenizer, num_questions=num_questions, max_length=max_length, seed=seed)


def options_of(row):
    options = row.get("options", row.get("choices"))
    return options["text"] if isinstance(options, dict) else options


@torch.no_grad()
def answer_nlls(model, tokenizer, row):
    """One plain forward pass an answer, no pads: mean NLL of the answer's tokens."""
    found = []
    for option in options_of(row):
        prompt = f"Question: {row['question']}\nAnswer:"
        context, whole = (
            opening_ids(tokenizer) + tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (prompt, f"{prompt} {option}")
        )
        ids = torch.tensor([whole])
        log_p = model(input_ids=ids).logits[0].double().log_softmax(-1)
        tokens = range(len(context), len(whole))
        found.append(-sum(float(log_p[place - 1, whole[place]]) for place in tokens) / len(tokens))
    return found


@pytest.mark.parametrize("with_bos", [False, True])
def test_the_margin_is_that_of_plain_forward_passes(file, tokenizer, bos_tokenizer, with_bos):
    tokenizer = bos_tokenizer if with_bos else tokenizer
    model = tiny.model(vocab_size=400)
    stream = DecoderStream(model, find_architecture(model.config))
    samples = sampled(file(ROWS) + ",order=first", tokenizer)
    removed = frozenset({Unit(1, "attn"), Unit(3, "ffn"), Unit(4, "attn")})
    with bypass(model, stream.architecture, removed):
        nlls = [answer_nlls(model, tokenizer, row) for row in ROWS]
    margins = [n[r] - min(n[:r] + n[r + 1 :]) for n, r in zip(nlls, RIGHT, strict=True)]
    for batch_size in (1, 3, 100):
        ablation = Ablation(stream, samples, "task", batch_size=batch_size)
        found = ablation.per_sequence([removed], range(ablation.num_batches))[0]
        assert found.tolist() == pytest.approx(margins, abs=2 * tiny.ROUNDING)
        assert ablation(removed) == pytest.approx(sum(margins) / 5, abs=2 * tiny.ROUNDING)
        error = Ablation(stream, samples, "task-error", batch_size=batch_size)
        assert error(removed) == pytest.approx(sum(margin > 0 for margin in margins) / 5)
    assert 0 < sum(margin > 0 for margin in margins) < 5


def test_prefix_reuse_and_batches_of_whole_questions(file, tokenizer):
    model = tiny.model(vocab_size=400)
    stream = DecoderStream(model, find_architecture(model.config))
    ablation = Ablation(stream, sampled(file(ROWS) + ",order=first", tokenizer), "task", batch_size=4)
    assert ablation.batch_sizes == [2, 1, 2]  # 3 + 2, 4, 2 + 3 answers
    assert ablation.weights.tolist() == [0.2] * 5
    base = frozenset({Unit(2, "attn")})
    ablation.rebase(base)
    candidates = [base | {unit} for unit in stream.units if unit not in base]
    fresh = Ablation(stream, ablation.samples, "task", batch_size=4)
    assert ablation.evaluate(candidates) == [fresh(removed) for removed in candidates]
    assert ablation.on_excerpts(0.3).batch_sizes == [2]
    first, last = ablation.samples.split(8)
    assert [len(part.choices.rows) for part in (first, last)] == [2, 3]
    assert len(first.input_ids) == 5


def test_other_objectives_see_every_token_of_the_answers(file, tokenizer):
    model = tiny.model(vocab_size=400)
    stream = DecoderStream(model, find_architecture(model.config))
    samples = sampled(file(ROWS), tokenizer)
    ablation = Ablation(stream, samples, "kl")
    assert len(ablation.weights) == 14
    tokens = samples.attention_mask.sum(dim=-1)
    assert ablation.weights.tolist() == pytest.approx((tokens / tokens.sum()).tolist())


def test_only_the_tokens_of_the_answers_are_scored(file, tokenizer):
    samples = sampled(file(ROWS) + ",order=first", tokenizer)
    texts = [option for row in ROWS for option in options_of(row)]
    for ids, scored, text in zip(samples.input_ids, samples.choices.scored, texts, strict=True):
        assert tokenizer.decode(ids[1:][scored[:-1]]) == f" {text}"
    assert samples.choices.rows == [slice(0, 3), slice(3, 5), slice(5, 9), slice(9, 11), slice(11, 14)]
    assert [int(samples.choices.right[rows].nonzero()) for rows in samples.choices.rows] == RIGHT


def test_the_right_answers_are_part_of_the_digest_and_the_seed_shuffles(file, tokenizer):
    first = sampled(file(ROWS), tokenizer)
    assert first.description.digest == sampled(file(ROWS), tokenizer).description.digest
    assert first.description.digest != sampled(file(ROWS), tokenizer, seed=1).description.digest
    changed = [ROWS[0] | {"answer": 2}, *ROWS[1:]]
    assert first.description.digest != sampled(file(changed), tokenizer).description.digest


def test_questions_that_do_not_fit_are_passed_over_and_counted(file, tokenizer):
    long = {"question": "word " * 300, "options": ["a", "b"], "answer": 0}
    samples = sampled(file([long, *ROWS]) + ",order=first", tokenizer)
    assert "1 passed over because they are longer than 200 token ids" in samples.description.detail
    assert len(samples.choices.rows) == 5


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "plain"}, "question 1 of .* is no multiple-choice question: write"),
        ({"question": "?", "options": ["a"], "answer": 0}, "1 options and the answer 0: give at least two"),
        ({"question": "?", "options": ["a", "b"], "answer": 2}, "0-based index or a letter"),
        ({"question": "?", "options": ["a", "b"], "answer": "C"}, "0-based index or a letter"),
        ({"question": "?", "options": ["a", "b"], "answer": True}, "0-based index or a letter"),
    ],
)
def test_what_is_no_question_is_refused(file, row, words):
    with pytest.raises(InputError, match=words):
        check_questions(parse_source(file([row])))


def test_bad_sources_say_what_is_allowed(file, tokenizer):
    with pytest.raises(InputError, match="no file of multiple-choice questions, which a task objective needs"):
        check_questions(parse_source("stdlib"))
    with pytest.raises(InputError, match="is empty: write one question a line"):
        check_questions(parse_source(file([])))
    with pytest.raises(InputError, match="holds 5 questions that can be used, but 6 are asked for"):
        sampled(file(ROWS), tokenizer, num_questions=6)
    model = tiny.model()
    with pytest.raises(InputError, match="'task' compares the answers of multiple-choice questions"):
        Ablation(DecoderStream(model, find_architecture(model.config)), tiny.samples(), "task")


@pytest.mark.parametrize("method", ["greedy", "shapley", "window"])
def test_a_task_calibrates_a_whole_run(file, tmp_path, method):
    block = 2
    model = tiny.save(tmp_path / "model", identity=block, max_position_embeddings=256)
    recipe = Recipe.build(
        model=str(model),
        method=method,
        objective="task",
        unit="block",
        remove="1",
        calibration=file(ROWS),
        calibration_samples=4,
        calibration_length=200,
        evaluation_samples=2,
        evaluation_length=16,
        speed=False,
    )
    result = prune_model(recipe)
    plan = result.plan
    if method == "shapley":
        scores = result.scores.find("shapley", "block")
        assert scores.measure.startswith("task, nats per token; ")
        assert scores.standard_errors.keys() == scores.values.keys()
    assert plan.objective == "task"
    assert plan.steps[0].objective is not None
    assert len(plan.removed) == 2
