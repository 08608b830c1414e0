"""Tasks give what lm-evaluation-harness gives when it is run directly, and nothing is asked twice."""

import functools
import json
import math
import shutil

import lm_eval
import numpy as np
import pytest
from lm_eval.tasks import TaskManager
from local_tasks import NUM_QUESTIONS, write_tasks

import tiny
from depthcut.evaluation import harness
from depthcut.evaluation import suite as suites
from depthcut.evaluation.harness import Item, TaskResult, model_digest, run_suite, run_task
from depthcut.evaluation.retention import compare_tasks
from depthcut.evaluation.suite import load_suite
from depthcut.export.hf import write_directory
from depthcut.model.architectures import find_architecture
from depthcut.model.load import resolve
from depthcut.surgery import apply
from depthcut.types import InputError, Unit

NAMES = ["colours", "sentences", "completions"]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return str(write_tasks(tmp_path_factory.mktemp("tasks") / "own"))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("models") / "dense", max_position_embeddings=256)


@pytest.fixture(scope="module")
def loaded(directory):
    source = resolve(str(directory))
    return source.load_model(), source.load_tokenizer()


def directly(directory, tasks, names, **options):
    """The harness's own results and samples, by task, from the directory's name."""
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(directory), "device": "cpu"},
        tasks=names,
        batch_size=1,
        bootstrap_iters=0,
        task_manager=TaskManager(include_path=tasks, include_defaults=False),
        **options,
    )
    return found["results"], found["samples"]


@pytest.mark.parametrize("options", [{}, {"limit": 5}, {"num_fewshot": 2}], ids=str)
def test_results_are_those_of_the_harness_run_directly(directory, loaded, tasks, options):
    names = NAMES if "num_fewshot" not in options else ["colours"]
    results, samples = directly(directory, tasks, names, **options)
    given = options | ({"limit": str(options["limit"])} if "limit" in options else {})
    suite = load_suite(names, include_path=tasks, **given)
    for name in names:
        found = run_task(suite.tasks[name], *loaded, digest="")
        assert found.metrics == {key: value for key, value in results[name].items() if key in found.metrics}
        assert found.metrics and len(found.items) == options.get("limit", NUM_QUESTIONS)
        for item, sample in zip(found.items, samples[name], strict=True):
            assert (item.document, item.digest) == (sample["doc_id"], sample["doc_hash"])
            assert item.answers == json.loads(json.dumps(sample["filtered_resps"]))
            scored = {f"{metric},none": sample[metric] for metric in sample["metrics"]}
            assert item.values == json.loads(json.dumps(scored))


def test_a_model_without_sublayers_is_asked_as_it_is_written(loaded, tasks, tmp_path):
    model, tokenizer = loaded
    pruned = apply(model, find_architecture(model.config), [Unit(1, "attn"), Unit(4, "ffn")])
    suite = load_suite(["colours"], include_path=tasks)
    (tmp_path / "pruned").mkdir()
    write_directory(pruned, tokenizer, tmp_path / "pruned")
    source = resolve(str(tmp_path / "pruned"))
    in_memory = run_task(suite.tasks["colours"], pruned, tokenizer, digest="")
    reloaded = run_task(suite.tasks["colours"], source.load_model(), source.load_tokenizer(), digest="")
    assert in_memory.items == reloaded.items
    assert in_memory.items != run_task(suite.tasks["colours"], model, tokenizer, digest="").items


def test_asking_changes_neither_model_nor_tokenizer(loaded, tasks):
    model, tokenizer = loaded
    tokenizer.pad_token = None
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    suite = load_suite(["colours"], include_path=tasks)
    first, second = (run_task(suite.tasks["colours"], model, tokenizer, digest="") for _ in range(2))
    assert first.items == second.items
    assert tokenizer.pad_token is None
    assert all(bool((parameter == before[name]).all()) for name, parameter in model.named_parameters())


class TestCache:
    @pytest.fixture
    def asked(self, monkeypatch):
        """The names of the tasks that were really asked of a model, in order."""
        names = []
        real = harness.run_task

        def count(task, *rest, **options):
            names.append(task.name)
            return real(task, *rest, **options)

        monkeypatch.setattr(harness, "run_task", count)
        return names

    def run(self, loaded, tasks, cache, digest="a" * 64, **options):
        suite = load_suite(NAMES, include_path=tasks, limit="3", **options)
        return run_suite(suite, *loaded, name="dense", digest=digest, cache=cache)

    def test_a_second_run_asks_nothing_and_finds_the_same(self, loaded, tasks, asked, tmp_path):
        first = self.run(loaded, tasks, tmp_path)
        assert asked == NAMES
        assert self.run(loaded, tasks, tmp_path) == first
        assert asked == NAMES

    def test_a_killed_run_repeats_only_the_task_in_flight(self, loaded, tasks, asked, tmp_path, monkeypatch):
        keep = harness._keep

        def die(result, file):
            if result.task == "sentences":
                raise KeyboardInterrupt
            keep(result, file)

        monkeypatch.setattr(harness, "_keep", die)
        with pytest.raises(KeyboardInterrupt):
            self.run(loaded, tasks, tmp_path)
        monkeypatch.setattr(harness, "_keep", keep)
        self.run(loaded, tasks, tmp_path)
        assert asked == ["colours", "sentences", "sentences", "completions"]
        assert not [file for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".json"]

    def test_another_model_is_asked_anew(self, loaded, tasks, asked, tmp_path):
        self.run(loaded, tasks, tmp_path)
        self.run(loaded, tasks, tmp_path, digest="b" * 64)
        assert asked == [*NAMES, *NAMES]

    def test_a_file_cut_off_in_the_middle_is_asked_anew(self, loaded, tasks, asked, tmp_path, capsys):
        first = self.run(loaded, tasks, tmp_path)
        file = next(tmp_path.rglob("colours-*.json"))
        file.write_text(file.read_text()[:100])
        assert self.run(loaded, tasks, tmp_path)["colours"].items == first["colours"].items
        assert asked == [*NAMES, "colours"]
        assert f"{file} is no taskresult of depthcut" in capsys.readouterr().err

    def test_log_likelihoods_of_any_size_survive_the_file(self, tmp_path):
        answers = [[-math.inf, False], [-0.1, True]]
        item = Item(document=0, digest="d", answers=answers, values={"acc,none": 1.0}, chance=0.5)
        result = TaskResult(
            task="t",
            digest="d",
            model_digest="m",
            metrics={"acc,none": math.nan},
            items=(item,),
            batch_size="1",
            seconds=1.0,
        )
        harness._keep(result, tmp_path / "result.json")
        found = TaskResult.from_file(tmp_path / "result.json")
        assert found.items == result.items and math.isnan(found.metrics["acc,none"])


class TestDigest:
    def digest(self, tasks, **options):
        return load_suite(["colours"], include_path=tasks, **options).tasks["colours"].digest

    def test_is_of_what_is_asked_and_not_of_where_it_lies(self, tasks, tmp_path):
        moved = str(write_tasks(tmp_path / "moved"))
        assert self.digest(tasks) == self.digest(moved)
        others = [self.digest(tasks, limit="3"), self.digest(tasks, num_fewshot=1)]
        rows = (tmp_path / "moved" / "rows.jsonl").read_text()
        (tmp_path / "moved" / "rows.jsonl").write_text(rows.replace("Box 7", "Bag 7"))
        others.append(self.digest(moved))
        assert len({self.digest(tasks), *others}) == 4

    def test_of_a_model_sees_every_byte_of_its_weights(self, directory, tmp_path):
        copied = shutil.copytree(directory, tmp_path / "copy")
        digest = model_digest(resolve(str(directory)))
        assert model_digest(resolve(str(copied))) == digest
        weights = bytearray((copied / "model.safetensors").read_bytes())
        weights[-4] ^= 1
        (copied / "model.safetensors").write_bytes(bytes(weights))
        assert model_digest(resolve(str(copied))) != digest


class TestComparison:
    @pytest.fixture(scope="class")
    def found(self, loaded, tasks):
        """Suite, and results of the dense model and of one whose first attention is gone."""
        model, tokenizer = loaded
        pruned = apply(model, find_architecture(model.config), [Unit(0, "attn"), Unit(2, "ffn"), Unit(3, "ffn")])
        suite = load_suite(["colours", "both", "sentences"], include_path=tasks)
        results = {
            name: {task.name: run_task(task, each, tokenizer, digest="") for task in suite.tasks.values()}
            for name, each in (("dense", model), ("pruned", pruned))
        }
        rows = {(row.name, row.model): row for row in compare_tasks(suite, results)}
        return results, rows

    def test_scores_are_the_harness_s_and_their_errors_its_closed_form(self, found):
        results, rows = found
        for model in ("dense", "pruned"):
            row = rows["colours/acc", model]
            values = [item.values["acc,none"] for item in results[model]["colours"].items]
            assert row.value == pytest.approx(results[model]["colours"].metrics["acc,none"])
            assert row.stderr == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)))
            assert row.samples == NUM_QUESTIONS

    def test_the_difference_is_over_the_same_items(self, found):
        results, rows = found
        columns = [[item.values["acc,none"] for item in results[model]["colours"].items] for model in results]
        differences = np.subtract(columns[1], columns[0])
        row = rows["colours/acc/difference", "pruned"]
        assert row.value == pytest.approx(differences.mean())
        assert row.stderr == pytest.approx(differences.std(ddof=1) / math.sqrt(NUM_QUESTIONS))

    def test_guessing_is_one_in_as_many_options_as_an_item_has(self, found):
        results, _ = found
        assert [item.chance for item in results["dense"]["colours"].items] == [
            1 / (2 + number % 3) for number in range(NUM_QUESTIONS)
        ]

    def test_a_group_is_the_mean_of_its_tasks(self, found):
        results, rows = found
        means = [results["pruned"][name].metrics["acc,none"] for name in ("colours", "numbers")]
        assert rows["both/acc", "pruned"].value == pytest.approx(sum(means) / 2)
        assert "numbers/acc" not in {name for name, _ in rows}

    def test_a_perplexity_is_the_harness_s_and_no_part_of_the_average(self, found):
        results, rows = found
        for model in ("dense", "pruned"):
            row = rows["sentences/word_perplexity", model]
            assert row.value == pytest.approx(results[model]["sentences"].metrics["word_perplexity,none"])
            assert row.stderr > 0
        assert ("sentences/word_perplexity/retained", "pruned") not in rows
        average = rows["average/accuracy", "pruned"]
        assert average.data == "mean of colours/acc_norm, both/acc"
        assert average.value == pytest.approx(
            (rows["colours/acc_norm", "pruned"].value + rows["both/acc", "pruned"].value) / 2
        )

    def test_the_dense_model_alone_gives_its_scores(self, found, tasks):
        results, rows = found
        suite = load_suite(["colours", "sentences"], include_path=tasks)
        alone = compare_tasks(suite, {"dense": results["dense"]})
        assert {row.model for row in alone} == {"dense"}
        assert all(row.value == rows[row.name, "dense"].value for row in alone)


class TestErrors:
    @pytest.mark.parametrize("limit", ["0", "-3", "1.5", "many", "nan"])
    def test_limit(self, tasks, limit):
        with pytest.raises(InputError, match=f"limit '{limit}' is no number of documents: write a count such as 40"):
            load_suite(["colours"], include_path=tasks, limit=limit)

    def test_share_of_the_documents(self, tasks):
        assert len(load_suite(["colours"], include_path=tasks, limit="0.25").tasks["colours"].inner.instances) == 9

    def test_unknown_task_names_the_nearest(self, tasks, monkeypatch):
        # The harness's own thousands of tasks take seconds to read.
        alone = functools.partial(TaskManager, include_defaults=False)
        monkeypatch.setattr("lm_eval.tasks.TaskManager", alone)
        with pytest.raises(InputError) as raised:
            load_suite(["colurs"], include_path=tasks)
        assert str(raised.value).startswith("unknown task 'colurs'; did you mean colours? ")
        assert "lm-eval ls tasks lists all" in str(raised.value)

    def test_examples_below_none(self, tasks):
        with pytest.raises(InputError, match="-1 examples cannot stand before a question"):
            load_suite(["colours"], include_path=tasks, num_fewshot=-1)

    def test_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(InputError, match="nothing is no directory; name one that holds tasks as YAML"):
            load_suite(["colours"], include_path=str(tmp_path / "nothing"))

    def test_task_that_runs_what_the_model_writes(self, tasks):
        with pytest.raises(InputError, match="the task programs runs code that the model writes.*--confirm-run-unsafe"):
            load_suite(["programs"], include_path=tasks)
        assert "programs" in load_suite(["programs"], include_path=tasks, unsafe_code=True).tasks

    def test_task_that_is_broken(self, tasks):
        with pytest.raises(InputError, match="the task broken cannot be read: 'nothing' is undefined"):
            load_suite(["broken"], include_path=tasks)

    def test_more_examples_than_there_are(self, tasks):
        with pytest.raises(InputError, match="the task colours cannot be read"):
            load_suite(["colours"], include_path=tasks, num_fewshot=500)

    def test_harness_that_is_not_installed(self, tasks, monkeypatch):
        monkeypatch.setattr(suites.importlib.util, "find_spec", lambda _: None)
        with pytest.raises(InputError, match=r"is not installed; run: pip install depthcut\[eval\]"):
            load_suite(["colours"], include_path=tasks)

    def test_examples_that_a_task_does_not_take_are_told(self, tasks, tmp_path, capsys):
        folder = write_tasks(tmp_path / "own")
        text = (folder / "colours.yaml").read_text()
        (folder / "colours.yaml").write_text(text + "num_fewshot: 0\n")
        description = load_suite(["colours"], include_path=str(folder), num_fewshot=3).tasks["colours"].description
        assert "colours is asked without examples by its definition, so not with 3" in capsys.readouterr().err
        assert "0-shot" in description
