"""Packing: the ids are those of the whole text, parts are mixed evenly, and evaluation never sees calibration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from depthcut.calibration import Samples, parse_source, require_disjoint, sample_text
from depthcut.types import InputError

Sentences = Callable[[int, int], str]
WriteRows = Callable[..., str]


def sample(source: str, tokenizer: PreTrainedTokenizerFast, **changes: Any) -> Samples:
    settings: dict[str, Any] = {"num_samples": 4, "length": 32, "seed": 0, "purpose": "calibration"}
    return sample_text(parse_source(source), tokenizer, **(settings | changes))


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.fixture
def articles(sentences: Sentences) -> list[str]:
    """Rows in the manner of WikiText: titles, paragraphs, blank rows; a text of many passages."""
    rows: list[str] = []
    for i in range(60):
        rows += ["", f" = Title {i} = \n", "", sentences(20 * i, 10), sentences(20 * i + 10, 10), ""]
    return rows


def test_rows_are_taken_from_the_start_with_eos_between(
    tokenizer: PreTrainedTokenizerFast, write_rows: WriteRows, sentences: Sentences
) -> None:
    rows = [sentences(i, 1) for i in range(50)]
    made = sample(write_rows("rows.jsonl", rows) + ",order=first", tokenizer)
    expected = [token for row in rows for token in [*encode(tokenizer, row), tokenizer.eos_token_id]]
    assert made.input_ids.flatten().tolist() == expected[: 4 * 32]
    assert made.input_ids.dtype == torch.int64
    assert "column text, documents 0-" in made.description.detail


@pytest.mark.parametrize("num_samples", [1, 40, 500])
def test_lines_are_tokenised_as_the_one_text_they_make(
    tokenizer: PreTrainedTokenizerFast, write_rows: WriteRows, articles: list[str], num_samples: int
) -> None:
    made = sample(
        write_rows("rows.jsonl.gz", articles) + ",join=lines", tokenizer, num_samples=num_samples, purpose="evaluation"
    )
    assert made.input_ids.flatten().tolist() == encode(tokenizer, "\n\n".join(articles))[: num_samples * 32]


def test_tokenising_passages_one_by_one_would_give_other_ids(
    tokenizer: PreTrainedTokenizerFast, sentences: Sentences
) -> None:
    # What gives the test above its teeth.
    first, second = sentences(0, 3) + "\n\n", sentences(3, 3)
    assert encode(tokenizer, first) + encode(tokenizer, second) != encode(tokenizer, first + second)


def test_a_text_file_is_tokenised_as_it_stands_to_its_last_sample(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, articles: list[str]
) -> None:
    path = tmp_path / "long.txt"
    text = "\n".join(articles)
    path.write_text(text)
    expected = encode(tokenizer, text)
    num_samples = len(expected) // 32
    made = sample(f"{path},order=first", tokenizer, num_samples=num_samples)
    assert made.input_ids.flatten().tolist() == expected[: num_samples * 32]
    with pytest.raises(InputError, match=f"ask for at most {num_samples} samples"):
        sample(f"{path},order=first", tokenizer, num_samples=num_samples + 1)


def test_no_more_is_tokenised_than_needed(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, articles: list[str]
) -> None:
    path = tmp_path / "long.txt"
    path.write_text("\n".join(articles))
    lengths: list[int] = []

    class Counting(PreTrainedTokenizerFast):
        def __call__(self, text: str, **settings: Any) -> Any:
            lengths.append(len(text))
            return tokenizer(text, **settings)

    sample(f"{path},order=first", Counting(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>"))
    assert sum(lengths) < 16_000 < path.stat().st_size / 4


def test_shuffled_passages_are_pieces_of_the_text_with_eos_between(
    tokenizer: PreTrainedTokenizerFast, write_rows: WriteRows, articles: list[str]
) -> None:
    made = sample(write_rows("rows.jsonl", articles) + ",join=lines", tokenizer, num_samples=200)
    text = "\n\n".join(articles)
    pieces = tokenizer.decode(made.input_ids.flatten()).split("</s>")
    assert len(pieces) > 3
    assert all(piece in text for piece in pieces)
    assert "passages shuffled with seed 0" in made.description.detail


def test_the_seed_alone_decides_the_shuffle(
    tokenizer: PreTrainedTokenizerFast, write_rows: WriteRows, sentences: Sentences
) -> None:
    path = write_rows("rows.jsonl", [sentences(i, 1) for i in range(200)])
    digests = {seed: sample(path, tokenizer, seed=seed).description.digest for seed in range(4)}
    assert len(set(digests.values())) == 4
    assert sample(path, tokenizer, seed=2).description.digest == digests[2]


def test_every_sample_opens_with_bos_where_the_tokenizer_adds_it(
    bos_tokenizer: PreTrainedTokenizerFast, write_rows: WriteRows, sentences: Sentences
) -> None:
    rows = [sentences(i, 1) for i in range(50)]
    made = sample(write_rows("rows.jsonl", rows) + ",order=first", bos_tokenizer)
    assert made.input_ids[:, 0].tolist() == [bos_tokenizer.bos_token_id] * 4
    expected = [token for row in rows for token in [*encode(bos_tokenizer, row), bos_tokenizer.eos_token_id]]
    assert made.input_ids[:, 1:].flatten().tolist() == expected[: 4 * 31]


def test_evaluation_of_the_calibrations_own_source_is_made_disjoint(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, articles: list[str]
) -> None:
    path = tmp_path / "long.txt"
    path.write_text("\n".join(articles))
    calibration = sample(str(path), tokenizer, num_samples=200)
    seen = sample(str(path), tokenizer, num_samples=200, purpose="evaluation")
    with pytest.raises(InputError, match="overlap"):
        require_disjoint(calibration, seen)

    evaluation = sample(
        str(path), tokenizer, num_samples=200, purpose="evaluation", exclude=calibration.document_digests
    )
    require_disjoint(calibration, evaluation)
    assert "left out because the other text holds them" in evaluation.description.detail
    sentences_of = [set(tokenizer.decode(made.input_ids.flatten()).splitlines()) for made in (calibration, evaluation)]
    assert not {line for line in sentences_of[0] & sentences_of[1] if len(line) > 40}


def test_rows_used_for_calibration_are_recognised_in_the_joined_text(
    tokenizer: PreTrainedTokenizerFast, write_rows: WriteRows, articles: list[str]
) -> None:
    path = write_rows("rows.jsonl", articles)
    calibration = sample(f"{path},order=first", tokenizer, num_samples=20)
    evaluation = sample(f"{path},join=lines", tokenizer, purpose="evaluation", exclude=calibration.document_digests)
    require_disjoint(calibration, evaluation)
    assert "Sentence number 0 " not in tokenizer.decode(evaluation.input_ids.flatten())


def test_the_standard_library_is_enough_for_both_purposes(tokenizer: PreTrainedTokenizerFast) -> None:
    calibration = sample("stdlib", tokenizer, num_samples=16, length=512)
    evaluation = sample(
        "stdlib", tokenizer, num_samples=16, length=512, purpose="evaluation", exclude=calibration.document_digests
    )
    require_disjoint(calibration, evaluation)


def owners(made: Samples, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Which part every sample is of, told by the letter that its text is made of."""
    return ["".join(sorted(set(tokenizer.decode(row)) & set("xyz"))) for row in made.input_ids]


@pytest.fixture
def lettered(write_rows: WriteRows) -> Callable[[str, int], str]:
    """A file of so many rows of one letter, 16 tokens each with its EOS, as no pair of these letters was learnt."""

    def write(letter: str, num_rows: int) -> str:
        return write_rows(f"{letter}.jsonl", [letter * 15] * num_rows)

    return write


def test_parts_are_mixed_evenly_from_the_first_samples_on(
    tokenizer: PreTrainedTokenizerFast, lettered: Callable[[str, int], str]
) -> None:
    source = "+".join(lettered(letter, 50) for letter in "xyz")
    made = sample(source, tokenizer, num_samples=9)
    assert owners(made, tokenizer) == list("xyz" * 3)
    assert made.description.source == source
    assert made.description.detail.count("shuffled") == 3


def test_what_a_short_part_lacks_the_others_share(
    tokenizer: PreTrainedTokenizerFast, lettered: Callable[[str, int], str]
) -> None:
    # x has 2 samples of 32 tokens; y has 4, fewer than its share of the rest.
    source = "+".join([lettered("x", 5), lettered("y", 9), lettered("z", 50)])
    found = owners(sample(source, tokenizer, num_samples=12), tokenizer)
    assert [found.count(letter) for letter in "xyz"] == [2, 4, 6]
    assert found[0] == "z"
    assert len(set(found[:5])) == 3


def test_every_part_is_packed_as_it_would_be_alone(
    tokenizer: PreTrainedTokenizerFast, write_rows: WriteRows, articles: list[str], lettered: Callable[[str, int], str]
) -> None:
    path = write_rows("rows.jsonl", articles) + ",join=lines"
    mixed = sample(f"{path}+{lettered('x', 50)}", tokenizer, num_samples=40, purpose="evaluation")
    alone = sample(path, tokenizer, num_samples=20, purpose="evaluation")
    assert mixed.input_ids[::2].tolist() == alone.input_ids.tolist()


def test_too_little_text_says_how_much_there_is_and_how_much_it_takes(
    tokenizer: PreTrainedTokenizerFast, lettered: Callable[[str, int], str]
) -> None:
    path = lettered("x", 5)
    with pytest.raises(
        InputError, match=r"x.jsonl holds 79 tokens, but 4 samples of 32 token ids take 128: ask for at most 2"
    ):
        sample(path, tokenizer)
    with pytest.raises(InputError, match=r"is shorter than one sample: it holds 79 tokens, and a sample takes 100"):
        sample(path, tokenizer, length=100)
    with pytest.raises(
        InputError, match=r"x.jsonl holds 79 tokens and .*y.jsonl holds 47 tokens, but .* at most 3 samples"
    ):
        sample(f"{path}+{lettered('y', 3)}", tokenizer)
    with pytest.raises(InputError, match=r"y.jsonl is shorter than one sample"):
        sample(f"{lettered('x', 50)}+{lettered('y', 1)}", tokenizer)


def test_text_that_the_exclusion_uses_up_is_named(
    tokenizer: PreTrainedTokenizerFast, lettered: Callable[[str, int], str]
) -> None:
    path = lettered("x", 20)
    seen = sample(path, tokenizer).document_digests
    with pytest.raises(InputError, match=r"holds 0 tokens .20 documents left out because the other text holds them"):
        sample(path, tokenizer, purpose="evaluation", exclude=seen)


def test_fewer_samples_than_parts_are_refused(
    tokenizer: PreTrainedTokenizerFast, lettered: Callable[[str, int], str]
) -> None:
    with pytest.raises(InputError, match="ask for at least 2 samples and 2 token ids"):
        sample(f"{lettered('x', 50)}+{lettered('y', 50)}", tokenizer, num_samples=1)
    with pytest.raises(InputError, match="2 token ids"):
        sample("stdlib", tokenizer, length=1)


def test_the_models_own_samples_need_the_model(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match="call sample_self"):
        sample("self", tokenizer)
