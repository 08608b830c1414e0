"""`depthcut eval` and `prune --eval` on tiny models: what is written, what is not asked twice, and how errors read."""

import json
import shutil
from pathlib import Path

import pytest
from local_tasks import NUM_QUESTIONS, write_tasks

import depthcut
import tiny
from depthcut.evaluation import harness, probes, questions
from depthcut.evaluation.harness import run_task
from depthcut.evaluation.suite import load_suite
from depthcut.export import hf
from depthcut.model.load import ModelSource, resolve
from depthcut.results import GenerationSample, Measurement, read_list

TEXTS = {"calibration_samples": 2, "calibration_length": 16, "evaluation_samples": 2, "evaluation_length": 16}
OPTIONS = TEXTS | {"method": "shortgpt", "unit": "block", "speed": False}
MEASURED = ["--evaluation-samples", "2", "--evaluation-length", "16", "--no-speed"]


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """Results are kept in the test's folder; reloading and writing after prompts are short."""
    tiny.reload_in_process(monkeypatch)
    monkeypatch.setattr(hf, "GREEDY_TOKENS", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write = questions.model_texts
    few = probes.PROBES[::8]
    monkeypatch.setattr(questions, "model_texts", lambda *rest, **options: write(*rest, probes=few, **options))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return str(write_tasks(tmp_path_factory.mktemp("tasks") / "own"))


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("models") / "dense", max_position_embeddings=512)


@pytest.fixture(scope="module")
def written(dense, tmp_path_factory):
    """Directories of models with one and with three blocks removed."""
    root = tmp_path_factory.mktemp("pruned")
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny.reload_in_process(monkeypatch)
        monkeypatch.setattr(hf, "GREEDY_TOKENS", 4)
        return [depthcut.prune(str(dense), output=root / count, remove=count, **OPTIONS).output for count in ("1", "3")]


@pytest.fixture
def pruned(written, tmp_path):
    """Copies of them that a test may change."""
    return [Path(shutil.copytree(folder, tmp_path / f"without-{folder.name}")) for folder in written]


def test_measurements_join_those_of_the_run_and_equal_the_harness_run_directly(dense, pruned, tasks, command):
    before = {(row.name, row.model) for row in read_list(Measurement, pruned[0] / "results.json")}
    asked = ["--tasks", "colours,sentences", "--include-path", tasks, "--generation"]
    printed = command("eval", pruned[0], *asked, *MEASURED)
    rows = {(row.name, row.model): row for row in read_list(Measurement, pruned[0] / "results.json")}
    assert before <= rows.keys()
    suite = load_suite(["colours", "sentences"], include_path=tasks)
    for model, folder in (("dense", dense), ("pruned", pruned[0])):
        source = resolve(str(folder))
        for name, metric in (("colours", "acc"), ("sentences", "word_perplexity")):
            direct = run_task(suite.tasks[name], source.load_model(), source.load_tokenizer(), digest="")
            assert rows[f"{name}/{metric}", model].value == pytest.approx(direct.metrics[f"{metric},none"])
    for name in ("colours/acc/difference", "loss/difference", "generation/greedy_copy/difference"):
        assert rows[name, "pruned"].source == str(resolve(str(dense)).provenance)
    assert "colours acc" in printed and "points" in printed and "generation, greedy copy" in printed
    kept = read_list(GenerationSample, pruned[0] / "generation.json")
    assert len(kept) == 2 * len(probes.PROBES[::8]) and kept[0].prompt == probes.PROBES[0].prompt
    assert not list(pruned[0].glob("*.partial"))


def test_nothing_is_asked_twice_and_a_changed_model_is_asked_again(pruned, tasks, command, monkeypatch):
    asked = []
    real = harness.run_task

    def count(task, *rest, **options):
        asked.append(task.name)
        return real(task, *rest, **options)

    monkeypatch.setattr(harness, "run_task", count)
    words = ["--tasks", "colours,completions", "--include-path", tasks, "--limit", "4", *MEASURED]
    command("eval", *pruned, *words)
    assert asked == 3 * ["colours", "completions"]
    first = [read_list(Measurement, folder / "results.json") for folder in pruned]
    command("eval", *pruned, *words)
    assert asked == 3 * ["colours", "completions"]
    assert [read_list(Measurement, folder / "results.json") for folder in pruned] == first
    config = json.loads((pruned[1] / "config.json").read_text())
    (pruned[1] / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    command("eval", *pruned, *words)
    assert asked == 4 * ["colours", "completions"]


def test_several_models_stand_side_by_side(pruned, tasks, command, tmp_path):
    words = ["--tasks", "colours", "--include-path", tasks, "-o", tmp_path / "all.json"]
    earlier = (pruned[0] / "results.json").read_text()
    command("eval", *pruned, *words, *MEASURED)
    rows = read_list(Measurement, tmp_path / "all.json")
    names = [row.model for row in rows if row.name == "colours/acc"]
    assert names == ["dense", *(folder.name for folder in pruned)]
    blocks = {row.model: row.value for row in rows if row.name == "blocks"}
    assert list(blocks.values()) == [6, 5, 3]
    assert (pruned[0] / "results.json").read_text() == earlier


def test_every_text_is_measured_apart(pruned, command, tmp_path):
    texts = []
    for name in ("first", "second"):
        texts.append(tmp_path / f"{name}.txt")
        texts[-1].write_text(f"The {name} text says the same words again and again. " * 8)
    given = [word for text in texts for word in ("--text", text)]
    printed = command("eval", pruned[0], *given, *MEASURED, "-o", tmp_path / "both.json")
    rows = read_list(Measurement, tmp_path / "both.json")
    for name in ("perplexity", "kl_to_dense", "loss/difference"):
        found = {row.data.partition(" (")[0]: row.value for row in rows if (row.name, row.model) == (name, "pruned")}
        assert list(found) == [str(text) for text in texts]
        assert len(set(found.values())) == 2
    assert "Perplexity (first.txt)" in printed and "Perplexity (second.txt)" in printed


def test_the_difference_of_the_loss_is_that_of_the_losses(pruned, command, tmp_path):
    command("eval", pruned[0], *MEASURED, "-o", tmp_path / "found.json")
    rows = {(row.name, row.model): row for row in read_list(Measurement, tmp_path / "found.json")}
    change = rows["loss", "pruned"].value - rows["loss", "dense"].value
    assert rows["loss/difference", "pruned"].value == pytest.approx(change)
    assert rows["loss/difference", "pruned"].stderr < rows["loss", "pruned"].stderr


def test_prune_asks_as_eval_does(dense, tasks, command, tmp_path):
    output = tmp_path / "out"
    words = ["--method", "shortgpt", "--unit", "block", "--remove", "2", "--calibration-samples", "2"]
    words += ["--calibration-length", "16", *MEASURED, "--eval", "colours", "--include-path", tasks, "--generation"]
    command("prune", dense, "-o", output, *words)
    ran = {(row.name, row.model): row.value for row in read_list(Measurement, output / "results.json")}
    assert ran["colours/acc", "pruned"] is not None and (output / "generation.json").is_file()
    asked = ["--tasks", "colours", "--include-path", tasks, "--generation", "-o", tmp_path / "again.json"]
    command("eval", output, *asked, *MEASURED)
    again = {(row.name, row.model): row.value for row in read_list(Measurement, tmp_path / "again.json")}
    names = {key for key in ran if key[0].startswith(("colours/", "generation/"))}
    assert len(names) > 10
    assert {key: ran[key] for key in names} == {key: again[key] for key in names}


def test_a_model_in_memory_is_asked_without_a_file(dense, tasks):
    found = depthcut.prune(str(dense), remove="1", tasks=["colours"], include_path=tasks, limit=5, **OPTIONS)
    rows = {(row.name, row.model): row for row in found.measurements}
    assert rows["colours/acc", "pruned"].samples == 5
    assert f"first 5 of {NUM_QUESTIONS}" in rows["colours/acc", "pruned"].data


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tasks", "colours", "--limit", "0"], "limit '0' is no number of documents: write a count such as 40"),
        (["--tasks", "colours", "--num-fewshot", "-1"], "-1 examples cannot stand before a question"),
        (["--tasks", "programs"], "the task programs runs code that the model writes"),
        (["--tasks", "broken"], "the task broken cannot be read"),
        (["--tasks", ","], "--tasks ',' names nothing; give names with commas"),
        (["--tasks", "colours", "--batch-size", "many"], "batch size 'many' is no number of requests; write auto"),
        (
            ["--tasks", "colours", "--cache-dir", "/dev/null/cache"],
            "results of tasks cannot be kept in /dev/null/cache",
        ),
        (["--text", "stdlb"], "unknown text 'stdlb'"),
        (["--tasks", "colours", "--engine", "llama.cpp"], "in llama.cpp speed alone is measured; leave --tasks"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_asked_is_refused_before_weights_load(pruned, tasks, command, monkeypatch, options, words):
    def fail(*_):
        raise AssertionError("weights were loaded before a problem was reported that needs none")

    monkeypatch.setattr(ModelSource, "load_model", fail)
    include = ["--include-path", tasks] if "--tasks" in options else []
    before = (pruned[0] / "results.json").read_text()
    message = command("eval", pruned[0], *options, *include, *MEASURED, code=2)
    assert message.startswith("depthcut: ") and words in message and message.count("\n") == 1
    assert (pruned[0] / "results.json").read_text() == before


def test_options_of_tasks_without_a_task_are_refused(pruned, command):
    assert "are about tasks; name some with --tasks" in command("eval", pruned[0], "--limit", "3", code=2)


def test_models_of_different_origin_are_not_measured_together(dense, pruned, command, tmp_path):
    other = tiny.save(tmp_path / "other", max_position_embeddings=512, rms_norm_eps=0.01)
    depthcut.prune(str(other), output=tmp_path / "strange", remove="1", **OPTIONS)
    message = command("eval", pruned[0], tmp_path / "strange", *MEASURED, code=2)
    assert f"{tmp_path / 'strange'} was made from {other} and {pruned[0]} from {dense}" in message


def test_prune_refuses_an_unknown_limit_before_weights_load(dense, tasks, command, tmp_path):
    words = ["--remove", "1", "--eval", "colours", "--include-path", tasks, "--limit", "some"]
    assert "limit 'some' is no number of documents" in command("prune", dense, "-o", tmp_path / "out", *words, code=2)
    words = ["--remove", "1", "--limit", "3"]
    assert "are about tasks; name some with --eval" in command("prune", dense, "-o", tmp_path / "out", *words, code=2)
    assert not (tmp_path / "out").exists()
