"""Files: every format gives the same text, and whatever is wrong with a file is said in one sentence."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from depthcut.calibration import check_source, parse_source
from depthcut.calibration.local import BLOCK_CHARACTERS, read_rows, read_text
from depthcut.types import InputError

TEXTS = ["first\nwith two lines", "", "Übergröße 漢字"]


def check(source: str) -> None:
    check_source(parse_source(source))


def test_every_row_format_gives_the_same_rows(tmp_path: Path, write_rows: Callable[..., str]) -> None:
    parquet = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2, 3], "text": TEXTS}), parquet)
    for path in (write_rows("rows.jsonl", TEXTS), write_rows("rows.jsonl.gz", TEXTS), parquet):
        assert list(read_rows(Path(path), "text")) == TEXTS


def test_null_is_an_empty_row_and_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": null}\n\n{"text": "a\\ud800b"}\n')
    assert list(read_rows(path, "text")) == ["", "a?b"]


def test_text_comes_back_whole_without_its_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    text = "Größe " * BLOCK_CHARACTERS
    path.write_text(text, encoding="utf-8-sig")
    assert "".join(read_text(path)) == text


def test_rows_are_read_only_as_far_as_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "good"}\nbroken\n')
    assert next(read_rows(path, "text")) == "good"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_wrong_column_lists_those_there_are(write_rows: Callable[..., str], name: str) -> None:
    path = write_rows(name, TEXTS, column="page")
    with pytest.raises(InputError, match=r"has no column 'text'; its columns are page: .* adding ,column=NAME"):
        check(path)
    check(path + ",column=page")


def test_wrong_column_of_a_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"id": [1], "body": ["words"]}), path)
    with pytest.raises(InputError, match="its columns are id, body"):
        check(str(path))
    with pytest.raises(InputError, match=r"column 'id' of row 1 of .* holds int, not text"):
        check(f"{path},column=id")
    check(f"{path},column=body")


def test_missing_file_names_the_nearest_beside_it(write_rows: Callable[..., str]) -> None:
    path = write_rows("sample.jsonl", TEXTS)
    with pytest.raises(InputError, match=r"there is no file .*sampel.jsonl; did you mean sample.jsonl\?"):
        check(path.replace("sample", "sampel"))


def test_missing_parquet_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        check(str(tmp_path / "missing.parquet"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b" \n\n \n" * 100, "is empty"),
        ("empty.jsonl", b"\n", "is empty"),
        ("blank.jsonl", b'{"text": ""}\n' * 20, "is empty"),
        ("latin.txt", "Größe".encode("latin-1"), "is not text: it is not UTF-8"),
        ("utf16.txt", "words".encode("utf-16-le"), "is not text: it holds zero bytes"),
        ("latin.jsonl", '{"text": "Größe"}'.encode("latin-1"), "is not text: it is not UTF-8"),
        ("broken.jsonl", b'{"text": "good"}\n{"text": \n', "line 2 of .* is not JSON"),
        ("list.jsonl", b'["words"]\n', "line 1 of .* is no JSON object"),
        ("number.jsonl", b'{"text": 3}\n', "column 'text' of row 1 of .* holds int, not text"),
        ("plain.jsonl.gz", b'{"text": "good"}\n', "is no complete gzip file"),
        ("cut.jsonl.gz", gzip.compress(b'{"text": "good"}\n' * 3)[:-12], "is no complete gzip file"),
        ("plain.parquet", b"words, not a table", "is no parquet file"),
        ("empty.parquet", b"", "is no parquet file"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_bad_files_end_with_one_sentence(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        check(str(path))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
