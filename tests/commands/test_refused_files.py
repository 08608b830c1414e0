"""Texts, output directories and artefacts that cannot be used are refused by name."""

import json
import shutil
from pathlib import Path

import pytest


@pytest.mark.usefixtures("weights_stay_unread")
class TestText:
    @pytest.mark.parametrize("option", ["--calibration", "--evaluation"])
    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("empty.txt", b"", "is empty: name a text with words in it"),
            ("blank.txt", b" \n\n \n", "is empty: name a text with words in it"),
            ("picture.txt", b"\x89PNG\r\n\x1a\n\xff\xfe", "is not text: it is not UTF-8"),
            ("words.txt", "Wörter".encode("utf-16-le"), "is not text"),
            ("short.txt", b"ten tokens", "is shorter than one sample: it holds 10 tokens, and a sample takes 16"),
            ("some.txt", b"enough for one sample", "ask for at most 1 samples"),
            ("rows.jsonl", b'{"body": "words"}\n', "has no column 'text'; its columns are body"),
            ("rows.jsonl", b'{"text": 7}\n', "holds int, not text"),
            ("rows.jsonl", b'{"text": \n', "line 1 of"),
            ("rows.jsonl.gz", b"plain", "is no complete gzip file"),
            ("rows.parquet", b"plain", "is no parquet file"),
        ],
        ids=lambda value: value if isinstance(value, str) and "." in value else "",
    )
    def test_file(self, prune_error, tmp_path, option, name, content, words):
        file = tmp_path / name
        file.write_bytes(content)
        assert words in (sentence := prune_error(option, file))
        assert str(file) in sentence

    def test_wrong_column_setting(self, prune_error, tmp_path):
        file = tmp_path / "rows.jsonl"
        file.write_text(json.dumps({"text": "words " * 50}) + "\n")
        words = prune_error("--calibration", f"{file},column=body")
        assert f"row 1 of {file} has no column 'body'; its columns are text" in words

    def test_the_same_text_for_both(self, prune_error, tmp_path):
        file = tmp_path / "text.txt"
        file.write_text("The same few words serve for both purposes here. " * 9)
        sentence = prune_error("--calibration", file, "--evaluation", file)
        assert "1 documents left out because the other text holds them" in sentence

    def test_the_same_sequences_under_another_name(self, prune_error, tmp_path):
        for name in ("one.txt", "two.txt"):
            (tmp_path / name).write_text("words" * 40 + name)
        sentence = prune_error(
            "--calibration", f"{tmp_path / 'one.txt'},order=first", "--evaluation", tmp_path / "two.txt"
        )
        assert "a model is not judged on the text it was calibrated on" in sentence


@pytest.mark.usefixtures("weights_stay_unread")
class TestOutput:
    def test_is_not_empty(self, prune_error, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("years of work")
        assert "exists and is not empty; choose another, or pass --overwrite" in prune_error()
        assert "holds no result of depthcut, so it is not overwritten" in prune_error("--overwrite")
        assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"

    def test_is_a_file(self, prune_error, tmp_path):
        (tmp_path / "out").write_text("")
        assert "is a file; name a directory" in prune_error()
        assert f"{tmp_path / 'out'} is no directory" in prune_error(output=tmp_path / "out" / "below")

    def test_is_the_model_itself(self, prune_error, llama, tmp_path):
        folder = shutil.copytree(llama, tmp_path / "model")
        (folder / "plan.json").write_text("{}")
        assert "is the model itself" in prune_error("--overwrite", model=folder, output=folder)

    def test_may_not_be_written(self, prune_error, tmp_path, monkeypatch):
        # Asked of the system by a stand-in, because tests may run as root, whom no mode stops.
        monkeypatch.setattr("os.access", lambda *_, **__: False)
        assert f"cannot be written: no permission in {tmp_path}" in prune_error()

    @pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that takes no files from anyone")
    def test_cannot_be_written_by_anyone(self, prune_error):
        assert "the output /proc/depthcut/out cannot be written" in prune_error(output="/proc/depthcut/out")

    def test_unfinished_run(self, prune_error, tmp_path):
        unfinished = tmp_path / ".out.unfinished"
        unfinished.mkdir()
        (unfinished / "recipe.yaml").write_text("model: another\n")
        assert "pass --resume to go on with it, or --overwrite to throw it away" in prune_error()
        assert "was begun with other options" in prune_error("--resume")
        assert (unfinished / "recipe.yaml").read_text() == "model: another\n"


@pytest.mark.usefixtures("weights_stay_unread")
class TestArtefacts:
    @pytest.mark.parametrize("command", ["apply", "report", "eval", "validate"])
    def test_no_such_plan(self, error, llama, tmp_path, command):
        plan = tmp_path / "plan.json"
        words = {
            "apply": ["apply", llama, plan, "-o", tmp_path / "out"],
            "report": ["report", tmp_path],
            "eval": ["eval", tmp_path],
            "validate": ["validate", plan],
        }
        assert f"cannot read {plan}: No such file or directory" in error(*words[command])

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("plan.json", "{", "is no plan of depthcut"),
            ("plan.json", '{"steps": []}', "is no plan of depthcut: model: Field required"),
            ("scores.json", "[]", "is no scoretable of depthcut"),
            ("results.json", '[{"name": "perplexity"}]', "holds no measurements of depthcut: 0.value: Field required"),
        ],
    )
    def test_damaged(self, error, tmp_path, name, content, words):
        (tmp_path / name).write_text(content)
        assert words in error("validate", tmp_path / name)

    def test_unknown_schema(self, error):
        assert "unknown schema 'plans'; did you mean plan?" in error("schema", "plans")
