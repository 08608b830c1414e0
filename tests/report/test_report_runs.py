"""Several runs on one page: one row a run, one dense model where there is one, and nothing compared that cannot be."""

import json
from dataclasses import replace

import pytest
from example_report import COLLAPSE, make_tasks, measure, renamed

from depthcut.report import write_comparison
from depthcut.report.side_by_side import answers, differing_texts, joined, run_curves
from depthcut.results import write_list
from depthcut.types import InputError

HOSTILE = "</script><script>alert(1)</script>"


@pytest.fixture
def shorter(run):
    """A second run on the same model, with half of the steps and a better perplexity."""
    measurements = [
        row.model_copy(update={"value": row.value / 2}) if (row.name, row.model) == ("perplexity", "pruned") else row
        for row in run.measurements
    ]
    return replace(run, name="shorter", plan=run.plan.applying(4), measurements=tuple(measurements))


def page_of(path, *runs):
    write_comparison(path / "runs.html", runs)
    return (path / "runs.html").read_text(encoding="utf-8")


def data_of(page):
    return json.loads(page.split('id="data">')[1].split("</script>")[0])


def test_every_run_answers_in_a_row(run, shorter):
    heads, (first, second) = answers([run, shorter])
    assert heads == ["Parameters", "KV cache", "Perplexity", "KL to dense", "Decoding"]
    assert (first.removed, second.removed) == ("8 of 30 blocks", "4 of 30 blocks")
    assert first.search == "greedy by js"
    assert first.texts == ("−21.1 %", "−26.7 %", "97.4 ± 1.1", "1.211 ± 0.014", "×1.32")
    assert second.texts[2] == "48.7 ± 1.1"
    heads, (first, second) = answers([run, replace(shorter, measurements=(*shorter.measurements, *make_tasks()))])
    assert heads[4] == "Tasks retained"
    assert (first.texts[4], second.texts[4]) == ("–", "60.0 ± 6.0 %")


def test_runs_of_one_model_share_its_dense_column_and_of_two_do_not(run, shorter):
    assert list(dict.fromkeys(row.model for row in joined([run, shorter]))) == ["dense", "smaller", "shorter"]
    model = shorter.plan.model.model_copy(update={"digest": "another"})
    other = replace(shorter, plan=shorter.plan.model_copy(update={"model": model}))
    assert {row.model for row in joined([run, other])} == {
        "smaller, dense",
        "smaller",
        "shorter, dense",
        "shorter",
    }


def test_speeds_of_different_times_give_way_to_those_measured_in_pairs(run):
    paired = replace(run, measurements=(*run.measurements, measure("decode_speedup", "pruned", 1.27, unit="ratio")))
    names = {row.name for row in joined([paired, replace(paired, name="other")])}
    assert "decode_speedup" in names
    assert "decode_tokens_per_second" not in names
    assert "prompt_tokens_per_second" in names


def test_curves_hold_shares_of_the_whole_model_and_where_each_run_was_cut(run, shorter):
    first, second = run_curves([run, shorter], [COLLAPSE, None])
    assert (first.applied, second.applied, first.collapse) == (8, 4, COLLAPSE)
    order, share, objective = first.points[7]
    assert (order, objective) == (8, run.plan.steps[7].objective)
    assert share == pytest.approx(1 - 106_194_240 / 134_515_008, abs=1e-4)


def test_the_page_holds_the_answers_the_curves_and_the_tasks(tmp_path, run, shorter):
    tasks = replace(run, measurements=(*run.measurements, *make_tasks()))
    page = page_of(tmp_path, tasks, shorter)
    assert "2 runs side by side" in page
    assert "cannot be compared" not in page
    data = data_of(page)
    assert [(curve["name"], curve["collapse"]) for curve in data["runs"]] == [
        ("smaller", COLLAPSE),
        ("shorter", COLLAPSE),
    ]
    assert {row["model"] for row in data["tasks"]} == {"dense", "smaller"}
    assert len(page.encode()) < 1_000_000


def test_perplexities_of_different_texts_are_not_passed_off_as_comparable(tmp_path, run, shorter):
    texts = [row.model_copy(update={"data": row.data and f"other {row.data}"}) for row in shorter.measurements]
    elsewhere = replace(shorter, measurements=tuple(texts))
    assert not differing_texts([run, shorter])
    further = measure("perplexity", "pruned", 40.0, data="a second text")
    assert not differing_texts([run, replace(shorter, measurements=(*shorter.measurements, further))])
    assert differing_texts([run, elsewhere])
    assert "cannot be compared" in page_of(tmp_path, run, elsewhere)


def test_hostile_text_stays_text(tmp_path, run, shorter):
    page = page_of(tmp_path, renamed(run, HOSTILE), renamed(replace(shorter, name="b"), f"b{HOSTILE}"))
    assert "<script>alert" not in page
    assert data_of(page)["runs"][0]["name"] == HOSTILE


def test_the_command_takes_several_directories_and_asks_for_a_name(tmp_path, run, shorter, exit_code, capsys):
    for one in (run, shorter):
        (tmp_path / one.name).mkdir()
        one.plan.write(tmp_path / one.name / "plan.json")
        write_list(one.measurements, tmp_path / one.name / "results.json")

    def report(*words):
        return exit_code("report", *words)

    both = (tmp_path / "smaller", tmp_path / "shorter")
    assert report(*both) == 2
    assert capsys.readouterr().err == "depthcut: 2 runs go on a page of their own; name it with --output\n"
    assert report(*both, "-o", tmp_path / "both.html") == 0
    assert "2 runs side by side" in (tmp_path / "both.html").read_text(encoding="utf-8")
    assert report(both[1]) == 0
    assert "4 of 30 blocks removed" in (both[1] / "report.html").read_text(encoding="utf-8")
    (both[1] / "recipe.yaml").write_text("remove: [")
    assert report(both[1]) == 2
    assert "recipe.yaml is no YAML text: while parsing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a"], "one run has a page of its own"),
        (["a", "b", "a"], "2 of the runs are called a; rename a directory"),
        (["a", "dense"], "a run is called dense"),
    ],
)
def test_runs_that_cannot_stand_on_one_page_are_refused(tmp_path, run, names, words):
    with pytest.raises(InputError, match=words):
        page_of(tmp_path, *(replace(run, name=name) for name in names))
    assert not (tmp_path / "runs.html").exists()
