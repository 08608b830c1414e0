"""The four studies on a tiny model in which a block does nothing: what they must find, and that no work is lost."""

import html
import json
import re

import pytest
import torch
from example_study import IDENTITY, MEASURED, TEXT

import depthcut
import tiny
from depthcut.ablation.prefix_cache import PrefixCache
from depthcut.evaluation.language import compare_language
from depthcut.model.load import ModelSource, resolve
from depthcut.model.stream import DecoderStream
from depthcut.run.recipe import Recipe
from depthcut.run.session import load, prepare
from depthcut.studies import quality
from depthcut.studies.importances import Importances
from depthcut.studies.study import Study, Table
from depthcut.surgery import apply
from depthcut.types import Plan, Unit
from evaluation.local_tasks import write_tasks

BLOCKS = ["--unit", "block", *MEASURED]


def rows(folder, table):
    """A study's table as dicts by column."""
    found = next(each for each in Study.from_file(folder / "study.json").tables if each.name == table)
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


def figures(folder):
    """What a study's page draws, by name."""
    data = re.search(r'<script type="application/json" id="data">(.*)</script>', (folder / "study.html").read_text())
    return json.loads(data[1])["figures"]


@pytest.fixture(scope="module")
def swept(model, tmp_path_factory):
    """A sweep of three methods, with a repair."""
    from depthcut.studies.sweep import sweep

    output = tmp_path_factory.mktemp("swept") / "out"
    text = {"calibration_samples": 3, "calibration_length": 24, "evaluation_samples": 2, "evaluation_length": 24}
    recipe = Recipe(model=str(model), unit="block", remove="3", **text)
    sweep(recipe, output, methods=["greedy", "shortgpt", "uidl"], repairs=["none", "refit"])
    return output


def test_the_first_removal_of_a_sweep_costs_nothing_where_a_block_does_nothing(swept):
    for row in rows(swept, "sweep"):
        if row["Units removed"] == 1 and row["Repair"] == "none":
            assert row["KL to dense, nats per token"] == pytest.approx(0, abs=tiny.ROUNDING)
        if row["Units removed"] > 1:
            assert row["KL to dense, nats per token"] > 1e-4
    for method in ("greedy", "shortgpt"):
        plan = Plan.from_file(swept / "paths" / method / "plan-3.json")
        assert {unit.layer for unit in plan.steps[0].remove} == {IDENTITY}


def test_a_sweep_measures_what_surgery_and_evaluation_do(swept, model):
    recipe = Recipe(model=str(model), calibration_samples=3, calibration_length=24)
    recipe = recipe.model_copy(update={"evaluation_samples": 2, "evaluation_length": 24})
    source = resolve(str(model))
    session = load(prepare(recipe, source, ("calibration", "evaluation")))
    found = {(r["Method"], r["Repair"], r["Units removed"]): r["Perplexity"] for r in rows(swept, "sweep")}
    removed = Plan.from_file(swept / "paths" / "greedy" / "plan-3.json").applying(2).removed
    cut = DecoderStream(apply(session.stream.model, source.architecture, removed), source.architecture)
    measured = compare_language(session.stream, {"cut": cut}, session.evaluation)
    expected = {row.model: row.value for row in measured if row.name == "perplexity"}
    assert found["greedy", "none", 2] == pytest.approx(expected["cut"], rel=tiny.ROUNDING)
    assert found["dense", "", 0] == pytest.approx(expected["dense"], rel=tiny.ROUNDING)


@pytest.mark.parametrize("repair", ["none", "refit"])
def test_a_sweep_measures_what_prune_does(swept, model, repair):
    text = {"calibration_samples": 3, "calibration_length": 24, "evaluation_samples": 2, "evaluation_length": 24}
    pruned = depthcut.prune(str(model), method="shortgpt", unit="block", remove="3", repair=repair, speed=False, **text)
    expected = [row.value for row in pruned.measurements if (row.name, row.model) == ("kl_to_dense", "pruned")]
    found = [
        row["KL to dense, nats per token"]
        for row in rows(swept, "sweep")
        if (row["Method"], row["Repair"], row["Units removed"]) == ("shortgpt", repair, 3)
    ]
    assert found == pytest.approx(expected, abs=tiny.ROUNDING)


def test_a_method_without_a_path_is_asked_for_every_number(swept):
    plans = [Plan.from_file(swept / "paths" / "uidl" / f"plan-{count}.json") for count in (1, 2, 3)]
    assert [len({unit.layer for unit in plan.removed}) for plan in plans] == [1, 2, 3]
    assert not (swept / "paths" / "greedy" / "plan-1.json").exists()


def test_a_sweep_leaves_tables_figures_and_data_that_agree(swept):
    found = Study.from_file(swept / "study.json")
    assert len(rows(swept, "sweep")) == 1 + 3 * 2 * 3
    lines = (swept / "sweep.csv").read_text().splitlines()
    assert len(lines) == 1 + len(rows(swept, "sweep"))
    text, page = (swept / "study.md").read_text(), html.unescape((swept / "study.html").read_text())
    for name in ("perplexity", "kl_to_dense"):
        curves = figures(swept)[name]["curves"]
        assert [curve["name"] for curve in curves if not curve["is_dashed"]] == ["greedy", "shortgpt", "uidl"]
        assert [curve["name"] for curve in curves if curve["is_dashed"]][1] == "shortgpt, refit"
    assert all(finding in text and finding in page for finding in found.findings)
    assert found.settings["methods"] == ["greedy", "shortgpt", "uidl"]
    assert set(found.texts) == {"calibration", "repair", "evaluation"}


@pytest.fixture
def count(monkeypatch):
    """Counts evaluated sets and measured models, and can interrupt after a number of them."""
    done = {"sets": 0, "models": 0, "stop": None}
    evaluate, measure = PrefixCache.run, quality.compare_language

    def stop_if_due():
        if done["stop"] is not None and done["sets"] + done["models"] >= done["stop"]:
            raise KeyboardInterrupt

    def run(self, removed, index, **options):
        stop_if_due()
        done["sets"] += 1
        return evaluate(self, removed, index, **options)

    def compare(dense, others, samples):
        stop_if_due()
        done["models"] += len(others)
        return measure(dense, others, samples)

    monkeypatch.setattr(PrefixCache, "run", run)
    monkeypatch.setattr(quality, "compare_language", compare)
    return done


@pytest.mark.parametrize(
    ("words", "stops"),
    [
        (["sweep", "--methods", "greedy,shortgpt", "--remove", "3", *BLOCKS], (10, 4)),
        (["compare", "--methods", "sleb,uidl", "--ratios", "20%,30%", *MEASURED], (10, 3)),
        (["inspect", "--remove", "3", *TEXT], (10, 60)),
        (["tradeoff", "--questions", "4"], (7, 20)),
    ],
    ids=["sweep", "compare", "inspect", "tradeoff"],
)
def test_a_killed_study_goes_on_without_repeating_anything(words, stops, model, questions, study, count, tmp_path):
    command, *options = words
    if command == "tradeoff":
        options += [part for name, file in questions.items() for part in ("--task", f"{name}={file}")]
    study(command, model, "-o", tmp_path / "whole", *options)
    total = (count["sets"], count["models"])
    count.update(sets=0, models=0)
    resume = []
    for stop in stops:
        count["stop"] = count["sets"] + count["models"] + stop
        study(command, model, "-o", tmp_path / "killed", *options, *resume, code=130)
        resume = ["--resume"]
    assert not (tmp_path / "killed").exists()
    count["stop"] = None
    study(command, model, "-o", tmp_path / "killed", *options, *resume)
    assert (count["sets"], count["models"]) == total
    whole, killed = (Study.from_file(tmp_path / name / "study.json") for name in ("whole", "killed"))
    assert killed.findings == whole.findings
    assert without_seconds(killed.tables) == without_seconds(whole.tables)
    assert figures(tmp_path / "killed") == figures(tmp_path / "whole")


def without_seconds(tables: tuple[Table, ...]) -> list[list[list[object]]]:
    return [
        [[cell for head, cell in zip(table.columns, row, strict=True) if head != "Found in, s"] for row in table.rows]
        for table in tables
    ]


def test_tasks_join_a_sweep_and_are_asked_of_every_model(model, study, tmp_path):
    tasks = write_tasks(tmp_path / "tasks")
    words = ["--methods", "shortgpt", "--remove", "2", *BLOCKS, "--tasks", "colours", "--include-path", tasks]
    printed = study("sweep", model, "-o", tmp_path / "out", *words)
    found = rows(tmp_path / "out", "sweep")
    scores = [row["colours/acc_norm, share of items"] for row in found]
    assert len(scores) == 3 and scores[1] == scores[0]  # without the block that does nothing
    assert "colours/acc_norm of shortgpt: no collapse" in printed
    assert "colours-acc_norm" in figures(tmp_path / "out")


def test_compared_methods_remove_the_same_share_of_the_parameters(model, study, tmp_path):
    output = tmp_path / "out"
    study("compare", model, "-o", output, "--methods", "sleb,shortgpt,random", "--ratios", "20%,40%", *MEASURED)
    for row in rows(output, "compare"):
        asked = float(row["Ratio"].rstrip("%"))
        assert asked <= row["Parameters removed, %"] < asked + 100 / 6
    by_method = {row["Method"]: row for row in rows(output, "kl_to_dense")}
    assert list(by_method) == ["dense", "sleb", "shortgpt", "random"]
    assert by_method["dense"] == {"Method": "dense", "Repair": "", "−20%": 0.0, "−40%": 0.0}
    long = {(row["Method"], row["Ratio"]): row["KL to dense, nats per token"] for row in rows(output, "compare")}
    assert by_method["sleb"]["−40%"] == long["sleb", "40%"]


def test_inspection_ranks_the_block_that_does_nothing_last_by_both_measures(model, study, tmp_path):
    output = tmp_path / "out"
    printed = study("inspect", model, "-o", output, "--method", "greedy", "--remove", "4", *TEXT)
    found = {row["Block"]: row for row in rows(output, "blocks")}
    assert found[str(IDENTITY)]["Loss risen by, nats per token"] == pytest.approx(0, abs=tiny.ROUNDING)
    assert found[str(IDENTITY)]["Block Influence"] == pytest.approx(0, abs=tiny.ROUNDING)
    assert "Block Influence ranks blocks like the rise of the loss" in printed
    static = {row["Sublayer"]: row["Cosine distance"] for row in rows(output, "sublayers")}
    assert sorted(static, key=static.get)[:2] == [f"{IDENTITY}.attn", f"{IDENTITY}.ffn"]
    windows = {(row["First block"], row["Blocks"]): row["Angular distance"] for row in rows(output, "windows")}
    assert len(windows) == 6 * 7 // 2
    assert min(windows, key=windows.get) == (IDENTITY, 1)
    assert rows(output, "least-windows")[0]["Window"] == f"{IDENTITY}–{IDENTITY}"
    steps = [row["Removed"] for row in rows(output, "path")]
    assert set(steps[:2]) == {f"{IDENTITY}.attn", f"{IDENTITY}.ffn"}
    positions = rows(output, "positions")
    assert sum(row["Altogether"] for row in positions) == len(steps) == 4
    assert sum(row["In the middle third"] for row in positions) >= 2
    runs = rows(output, "runs")
    assert sum(row["Sublayers"] for row in runs if row["Kind"] == "any") == 4
    assert sum(row["Sublayers"] for row in runs if row["Kind"] != "any") == 4
    assert any(f"{IDENTITY}.attn to {IDENTITY}.ffn" in row["Run"] or row["Sublayers"] > 2 for row in runs)


@pytest.mark.parametrize(
    ("family", "tables"), [("gpt_neox", {"blocks": 6, "sublayers": 12}), ("mamba2", {"sublayers": 6})]
)
def test_inspection_knows_what_blocks_of_a_family_are_made_of(family, tables, study, tmp_path):
    model = tiny.save(tmp_path / "model", family, identity=IDENTITY)
    study("inspect", model, "-o", tmp_path / "out", "--method", "random", "--remove", "2", *TEXT)
    found = {table.name: len(table.rows) for table in Study.from_file(tmp_path / "out" / "study.json").tables}
    assert {name: found[name] for name in ("blocks", "sublayers") if name in found} == tables
    risen = {row["Sublayer"]: row["Loss risen by, nats per token"] for row in rows(tmp_path / "out", "sublayers")}
    nothing = [name for name in risen if name.startswith(f"{IDENTITY}.")]
    assert [risen[name] for name in nothing] == pytest.approx([0] * len(nothing), abs=tiny.ROUNDING)
    assert all(abs(value) > tiny.ROUNDING for name, value in risen.items() if name not in nothing)


def test_a_task_trades_nothing_off_against_itself(model, questions, study, tmp_path):
    output = tmp_path / "out"
    same = [f"--task={name}={questions['sums']}" for name in ("one", "other")]
    printed = study("tradeoff", model, "-o", output, *same, "--questions", "4", "--remove", "1,2")
    assert "one and other rank units with a correlation of 1.00" in printed
    assert "of 2 units that go, one and other agree on 2" in printed
    found = {row["Unit"]: row for row in rows(output, "importance")}
    assert found[str(IDENTITY)]["one: margin lost, nats per token"] == pytest.approx(0, abs=tiny.ROUNDING)
    cross = {(row["Units removed"], row["Chosen for"], row["Asked"]): row for row in rows(output, "cross")}
    assert cross[2, "one", "other"]["Right, %"] == cross[2, "other", "one"]["Right, %"]


def test_the_cross_table_is_of_other_questions_and_each_task_is_asked_both_ways(model, questions, study, tmp_path):
    output = tmp_path / "out"
    tasks = [f"--task={name}={file}" for name, file in questions.items()]
    study("tradeoff", model, "-o", output, *tasks, "--questions", "5", "--remove", "2", "--unit", "sublayer")
    texts = Study.from_file(output / "study.json").texts
    assert texts["sums, deciding"].num_samples == texts["sums, measuring"].num_samples == 5 * 3
    assert texts["sums, deciding"].digest != texts["sums, measuring"].digest
    asked = [(row["Chosen for"], row["Asked"]) for row in rows(output, "cross")]
    assert asked == [("nothing", n) for n in questions] + [(a, b) for a in questions for b in questions]
    assert len(rows(output, "importance")) == 12


def test_reliability_tells_a_measure_from_noise():
    generator = torch.Generator().manual_seed(0)
    removals = tuple((Unit(layer, "attn"),) for layer in range(30))
    noise = torch.randn(30, 400, generator=generator, dtype=torch.float64)
    weights = torch.full((400,), 1 / 400, dtype=torch.float64)
    signal = torch.arange(30, dtype=torch.float64)[:, None]
    assert Importances(removals, noise + signal, weights).reliability > 0.99
    assert abs(Importances(removals, noise, weights).reliability) < 0.5
    assert Importances(removals, noise[:, :1], weights[:1]).reliability is None


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["sweep", "--methods", "gredy"], "unknown method 'gredy'; did you mean greedy? known: "),
        (["sweep", "--methods", "greedy,greedy"], "a method is named twice among greedy, greedy; name each once"),
        (["sweep", "--methods", ""], "no method was named; give some with --methods, for example greedy,shortgpt,uidl"),
        (["sweep", "--every", "0"], "every: Input should be greater than or equal to 1"),
        (["sweep", "--remove", "6", "--unit", "block"], "cannot remove 6 of 6 block units: at most 5 can go"),
        (["sweep", "--unit", "sublayer"], "uidl removes whole blocks, not sublayer units"),
        (["sweep", "--repair", "refit", "--repair", "refit"], "a repair is named twice among refit, refit"),
        (["sweep", "--repair", "heal"], "unknown repair 'heal'"),
        (["compare", "--ratios", "0.25"], "'0.25' is no share of the parameters; write one above 0% and below 100%"),
        (["compare", "--ratios", "25%,25%"], "the ratios 25%, 25% are not one or more different ones; write 10%,25%"),
        (["compare", "--ratios", "99%"], "cannot reach parameters=0.01 by pair units: all that may go are not enough"),
        (["inspect", "--method", "one-shot", "--unit", "pair"], "a one-shot ranking has no scores for pairs"),
        (["tradeoff", "--task", "a=q.jsonl"], "a trade-off is between tasks; give two or more"),
        (["tradeoff", "--task", "q.jsonl"], "'q.jsonl' names no task; write NAME=FILE.jsonl"),
        (["tradeoff", "--task", "a=q.jsonl", "--task", "a=r.jsonl"], "the task 'a' is named twice"),
        (["tradeoff", "--task", "a=q.jsonl", "--task", "b=r.jsonl"], "there is no file q.jsonl"),
        (["tradeoff", "--task", "a=stdlib", "--task", "b=stdlib"], "'stdlib' is no file of multiple-choice questions"),
    ],
)
def test_a_bad_input_is_one_sentence_before_weights_load(words, sentence, model, study, tmp_path, monkeypatch):
    monkeypatch.setattr(ModelSource, "load_model", lambda *_: pytest.fail("weights were loaded"))
    command, *options = words
    texts = [] if command == "tradeoff" else TEXT if command == "inspect" else MEASURED
    printed = study(command, model, "-o", tmp_path / "out", *options, *texts, code=2)
    assert printed.startswith("depthcut: ") and printed.count("\n") == 1
    assert sentence in printed
    assert [path.name for path in tmp_path.iterdir()] == []


def test_an_unfinished_study_is_not_resumed_with_other_options(model, study, count, tmp_path):
    words = ["sweep", model, "-o", tmp_path / "out", "--methods", "greedy", *BLOCKS]
    count["stop"] = 8
    study(*words, "--remove", "3", code=130)
    count["stop"] = None
    refused = study(*words, "--remove", "2", "--resume", code=2)
    assert "was begun with other options (see its settings.json); give the same options to resume it" in refused
    assert "pass --resume to go on with it" in study(*words, "--remove", "3", code=2)
    study(*words, "--remove", "3", "--resume")
    assert "exists and is not empty" in study(*words, "--remove", "3", code=2)
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    study(*words, "--remove", "2", "--overwrite")
    assert json.loads((tmp_path / "out" / "settings.json").read_text()) == settings | {"remove": "2"}
