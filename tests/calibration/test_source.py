"""Reading a SOURCE: what every form means, and the words of each refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from depthcut.calibration import parse_source
from depthcut.types import InputError


def test_built_in_hub_sets_read_different_splits_for_the_two_purposes() -> None:
    (wikitext,) = parse_source("wikitext").parts
    assert (wikitext.location, wikitext.config, wikitext.join) == ("Salesforce/wikitext", "wikitext-2-raw-v1", "lines")
    assert (wikitext.split_for("calibration"), wikitext.split_for("evaluation")) == ("train", "test")
    (c4,) = parse_source("c4").parts
    assert (c4.location, c4.config, c4.join) == ("allenai/c4", "en", "eos")
    assert (c4.split_for("calibration"), c4.split_for("evaluation")) == ("train", "validation")


def test_settings_replace_what_a_built_in_name_stands_for() -> None:
    (part,) = parse_source("wikitext, config=wikitext-103-raw-v1, split=validation, order=first").parts
    assert (part.location, part.config) == ("Salesforce/wikitext", "wikitext-103-raw-v1")
    assert part.split_for("calibration") == part.split_for("evaluation") == "validation"
    assert part.order_for("calibration") == "first"


def test_calibration_shuffles_and_evaluation_reads_from_the_start_by_default() -> None:
    (part,) = parse_source("stdlib").parts
    assert (part.order_for("calibration"), part.order_for("evaluation")) == ("shuffle", "first")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("some.txt", "text"),
        ("folder/some.jsonl", "rows"),
        ("some.jsonl.gz", "rows"),
        ("some.PARQUET", "rows"),
        ("some-org/some.set_v1.0", "hub"),
        ("stdlib", "stdlib"),
        ("self", "self"),
    ],
)
def test_kind_is_told_by_the_name(text: str, kind: str) -> None:
    assert parse_source(text).parts[0].kind == kind


def test_parts_keep_their_own_settings() -> None:
    first, second = parse_source("stdlib,order=first+org/name,column=body,revision=abc").parts
    assert (first.kind, first.order) == ("stdlib", "first")
    assert (second.location, second.column, second.revision, second.order) == ("org/name", "body", "abc", None)


def test_a_name_with_plus_and_comma_is_a_file_where_that_file_exists(tmp_path: Path) -> None:
    path = tmp_path / "c++, and more.txt"
    path.write_text("words")
    (part,) = parse_source(str(path)).parts
    assert (part.kind, part.location) == ("text", str(path))


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (part,) = parse_source("~/some.txt").parts
    assert (part.name, part.location) == ("~/some.txt", str(tmp_path / "some.txt"))


def test_more_parts_than_a_file_name_has_room_for() -> None:
    source = parse_source("+".join(f"organisation/data-set-{i}" for i in range(40)))
    assert len(source.parts) == 40


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no text was named: name stdlib, self, wikitext, c4, a file"),
        ("wikitxt", "unknown text 'wikitxt'.*did you mean wikitext"),
        ("x" * 300, "unknown text"),
        ("stdlib+", "nothing stands before or after a `\\+`"),
        ("stdlib+stdlib", "names 'stdlib' twice"),
        ("self,order=first", "the text self takes no settings; leave order out"),
        ("stdlib,column=text", "unknown setting of stdlib 'column'; known: order"),
        ("c4,colum=text", "did you mean column"),
        ("c4,column", "column= in 'c4,column' is unknown: column is a word"),
        ("c4,column=", "column is a word"),
        ("c4,split=a,split=b", "c4 is given split twice"),
        ("c4,join=spaces", "join is eos or lines"),
        ("c4,order=last", "order is shuffle or first"),
        ("folder/some.csv", "there is no file folder/some.csv: give .txt, .jsonl, .jsonl.gz or .parquet"),
        ("./some", "there is no file ./some"),
    ],
)
def test_refusals_say_what_is_allowed(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_source(text)


def test_directories_and_other_kinds_of_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a directory: name one file"):
        parse_source(str(tmp_path))
    table = tmp_path / "table.csv"
    table.write_text("text\nwords\n")
    with pytest.raises(InputError, match=r"of a kind that is not read as text: give .txt"):
        parse_source(str(table))


def test_a_model_writes_its_share_of_a_mixture():
    source = parse_source("self+stdlib+c4,split=validation")
    assert source.has_self and [source.num_written(count) for count in (1, 3, 8)] == [1, 1, 3]
    assert [part.name for part in source.read.parts] == ["stdlib", "c4"]
    assert parse_source("self").read is None and parse_source("self").num_written(7) == 7
    assert parse_source("stdlib").num_written(7) == 0 and parse_source("stdlib").read == parse_source("stdlib")
