"""Multiple-choice questions from JSON Lines: one right-padded sequence an answer, for the objectives `task` and
`task-error`.

A row holds `question`, `options` and `answer`; the field names of MMLU (`choices`, `answer`) and ARC (`choices` with
`text` and `label`, `answerKey`) are read too. The prompt is lm-eval's for ARC: "Question: ...\\nAnswer:", then a space
and the answer. Only the answer's tokens are scored. Questions of which an answer does not fit the asked length are
passed over: a question cut short may be another question.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from depthcut.calibration.local import read_objects
from depthcut.calibration.packing import opening_ids
from depthcut.calibration.samples import Choices, Samples, text_digests, token_digest
from depthcut.calibration.source import TextPart, TextSource
from depthcut.types import InputError, TextDescription

FORM = '{"question": "...", "options": ["...", "..."], "answer": 0}'


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        right: index of the right one among `options`.
    """

    text: str
    options: tuple[str, ...]
    right: int

    @property
    def prompt(self) -> str:
        return f"Question: {self.text}\nAnswer:"


@dataclass(frozen=True)
class _Answer:
    """The token ids of a question with one answer, and how many of the last belong to the answer."""

    ids: list[int]
    num_scored: int


def check_questions(source: TextSource) -> None:
    """Reads the first question, without model and tokenizer.

    Raises:
        InputError: the source is no file of questions, or it is empty.
    """
    part = _only_file(source)
    if not list(islice(_questions(part), 1)):
        raise InputError(f"{part.name} is empty: write one question a line, {FORM}")


def sample_questions(
    source: TextSource, tokenizer: PreTrainedTokenizerBase, *, num_questions: int, max_length: int, seed: int
) -> Samples:
    """The answers to exactly `num_questions` questions, shuffled unless the source says `order=first`.

    The digest is of the ids, of which are scored, and of which answer is right.

    Args:
        max_length: most token ids a sequence; they are as long as the longest of them.

    Raises:
        InputError: there are too few questions that fit, or a row is no question.
    """
    part = _only_file(source)
    questions = list(_questions(part))
    shuffled = part.order_for("calibration") == "shuffle"
    if shuffled:
        random.Random(seed).shuffle(questions)
    chosen: list[tuple[Question, list[_Answer]]] = []
    num_too_long = 0
    for question in questions:
        if len(chosen) == num_questions:
            break
        answers = [_tokenised(question.prompt, option, tokenizer) for option in question.options]
        if max(len(answer.ids) for answer in answers) > max_length:
            num_too_long += 1
        else:
            chosen.append((question, answers))
    passed_over = f", {num_too_long} passed over because they are longer than {max_length} token ids"
    if len(chosen) < num_questions:
        raise InputError(
            f"{part.name} holds {len(chosen)} questions that can be used{passed_over if num_too_long else ''}, but "
            f"{num_questions} are asked for; ask for fewer samples, for longer ones, or name a longer file"
        )
    order = f"shuffled with seed {seed}" if shuffled else "from the start"
    detail = f"{part.location}, {num_questions} questions {order}{passed_over if num_too_long else ''}"
    return _padded(chosen, tokenizer, source.text, detail, seed)


def _padded(
    chosen: list[tuple[Question, list[_Answer]]],
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    detail: str,
    seed: int,
) -> Samples:
    answers = [answer for _, of_question in chosen for answer in of_question]
    length = max(len(answer.ids) for answer in answers)
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    ends = torch.tensor([[len(answer.ids)] for answer in answers])
    num_scored = torch.tensor([[answer.num_scored] for answer in answers])
    places = torch.arange(length)
    input_ids = torch.tensor([answer.ids + [pad] * (length - len(answer.ids)) for answer in answers])
    choices = Choices(
        scored=(places >= ends - num_scored - 1) & (places < ends - 1),
        question=torch.tensor([index for index, (_, of_question) in enumerate(chosen) for _ in of_question]),
        right=torch.tensor([place == q.right for q, of_question in chosen for place in range(len(of_question))]),
    )
    description = TextDescription(
        source=source,
        detail=detail,
        num_samples=len(answers),
        length=length,
        seed=seed,
        digest=_digest(input_ids, choices),
    )
    digests = frozenset().union(*(text_digests(question.text) for question, _ in chosen))
    return Samples(input_ids, (places < ends).long(), description, digests, choices)


def _digest(input_ids: Tensor, choices: Choices) -> str:
    columns = [input_ids, choices.scored, choices.question[:, None], choices.right[:, None]]
    return token_digest(torch.cat([column.long() for column in columns], dim=1))


def _tokenised(prompt: str, option: str, tokenizer: PreTrainedTokenizerBase) -> _Answer:
    # Not verbose: text longer than the model's context is no mistake here.
    context, whole = (
        opening_ids(tokenizer) + tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        for text in (prompt, f"{prompt} {option}")
    )
    if len(whole) <= len(context):
        raise InputError(f"the answer {option!r} to {prompt!r} has no token of its own; leave the question out")
    return _Answer(whole, len(whole) - len(context))


def _only_file(source: TextSource) -> TextPart:
    part = source.parts[0]
    if len(source.parts) > 1 or part.kind != "rows" or part.location.lower().endswith(".parquet"):
        raise InputError(
            f"{source.text!r} is no file of multiple-choice questions, which a task objective needs as calibration; "
            f"name one .jsonl or .jsonl.gz file with lines such as {FORM}"
        )
    return part


def _questions(part: TextPart) -> Iterator[Question]:
    for number, row in enumerate(read_objects(Path(part.location)), start=1):
        yield _question(row, f"question {number} of {part.name}")


def _question(row: Mapping[str, Any], where: str) -> Question:
    options: Any = row.get("options", row.get("choices"))
    labels: Any = None
    if isinstance(options, dict):
        options, labels = options.get("text"), options.get("label")
    text = row.get("question")
    if not isinstance(text, str) or not isinstance(options, list) or not all(isinstance(o, str) for o in options):
        raise InputError(f"{where} is no multiple-choice question: write {FORM}")
    answer = row.get("answer", row.get("answerKey"))
    known = labels if isinstance(labels, list) else list(ascii_uppercase[: len(options)])
    right = known.index(answer) if answer in known else answer
    if len(options) < 2 or type(right) is not int or not 0 <= right < len(options):
        raise InputError(
            f"{where} has {len(options)} options and the answer {answer!r}: give at least two options, and the answer "
            "as a 0-based index or a letter"
        )
    return Question(text, tuple(options), right)
