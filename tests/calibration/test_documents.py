"""Documents: passages are the text again, the order is the one asked for, and an empty source is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from depthcut.calibration import check_source, parse_source
from depthcut.calibration.documents import PASSAGE_CHARACTERS, Document, open_documents, passages
from depthcut.types import InputError


def documents(source: str, purpose: str = "calibration", seed: int = 0) -> list[Document]:
    (part,) = parse_source(source).parts
    return list(open_documents(part, purpose, seed))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["x" * 30_000, "words " * 6000, "a line\n" * 5000, "a paragraph\n\nor two " * 2000, "short"]
)
def test_passages_are_the_text_again_wherever_its_blocks_end(text: str) -> None:
    whole = list(passages([text]))
    assert "".join(whole) == text
    assert list(passages(text[i : i + 77] for i in range(0, len(text), 77))) == whole
    assert all(PASSAGE_CHARACTERS / 2 <= len(passage) <= PASSAGE_CHARACTERS for passage in whole[:-1])


def test_passages_end_after_paragraphs_where_there_are_any() -> None:
    text = ("one line\nanother line of it\n\n" + "words " * 50) * 100
    assert all(passage.endswith("\n\n") for passage in list(passages([text]))[:-1])


def test_lines_are_joined_with_a_blank_line_and_blank_rows_count(write_rows: Callable[..., str]) -> None:
    rows = ["", " = Title = \n", "", " A paragraph . \n" * 400, ""] * 5
    found = documents(write_rows("rows.jsonl", rows) + ",join=lines", "evaluation")
    assert len(found) > 5
    assert "".join(document.text for document in found) == "\n\n".join(rows)


def test_blank_rows_are_no_documents_but_keep_their_place(write_rows: Callable[..., str]) -> None:
    found = documents(write_rows("rows.jsonl", ["a", " \n", "b"]), "evaluation")
    assert found == [Document(0, "a"), Document(2, "b")]


def test_shuffling_is_over_all_documents_and_follows_the_seed(write_rows: Callable[..., str]) -> None:
    path = write_rows("rows.jsonl", [f"row {i}" for i in range(500)])
    in_order = documents(path, "evaluation")
    shuffled = documents(path, seed=3)
    assert [document.index for document in in_order] == list(range(500))
    assert sorted(shuffled, key=lambda document: document.index) == in_order
    assert max(document.index for document in shuffled[:20]) > 250
    assert documents(path, seed=3) == shuffled
    assert documents(path, seed=4) != shuffled


def test_a_passage_is_the_same_document_for_both_purposes(tmp_path: Path, sentences: Callable[[int, int], str]) -> None:
    path = tmp_path / "long.txt"
    path.write_text(sentences(0, 1000))
    assert set(documents(str(path))) == set(documents(str(path), "evaluation"))


def test_topics_come_in_the_order_of_their_names() -> None:
    from pydoc_data.topics import topics

    assert [document.text for document in documents("stdlib,order=first")] == [topics[name] for name in sorted(topics)]


def test_the_models_own_samples_are_no_evaluation_text() -> None:
    check_source(parse_source("self"))
    with pytest.raises(InputError, match="name another evaluation text"):
        check_source(parse_source("self"), "evaluation")


def test_every_part_is_checked(write_rows: Callable[..., str]) -> None:
    path = write_rows("rows.jsonl", [""])
    with pytest.raises(InputError, match=r"rows.jsonl is empty"):
        check_source(parse_source(f"stdlib+{path}"))
