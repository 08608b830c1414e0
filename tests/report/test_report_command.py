"""What the page hands out is what the command line takes: the command for another cut makes that model."""

import shlex

import pytest

import tiny
from depthcut.report import Run
from depthcut.types import Plan

pytestmark = pytest.mark.usefixtures("quick_reload")


def test_the_command_for_another_cut_makes_that_model_with_the_runs_own_repair(tmp_path, command, monkeypatch):
    model = tiny.save(tmp_path / "a model")
    sizes = [
        "--calibration-samples",
        4,
        "--calibration-length",
        16,
        "--evaluation-samples",
        2,
        "--evaluation-length",
        16,
    ]
    command("prune", model, "--remove", 2, "--unit", "block", *sizes, "--no-speed", "-o", tmp_path / "first")
    first = Run.from_directory(tmp_path / "first")
    assert len(first.plan.steps) == 2
    assert [repair.method for repair in first.repairs] == ["refit"]

    monkeypatch.chdir(tmp_path / "first")
    words = shlex.split(f"{first.apply_command} --steps 1")
    assert words[:5] == ["depthcut", "apply", str(model), "plan.json", "-o"]
    command(*words[1:], "--no-speed", *sizes[4:])
    second = Run.from_directory(tmp_path / "first" / "OUT")
    assert second.plan == Plan.from_file("plan.json").applying(1)
    assert [repair.method for repair in second.repairs] == ["refit"]
    assert second.repairs[0].text.num_samples == first.repairs[0].text.num_samples


def test_a_page_goes_into_a_folder_that_is_there(tmp_path, command):
    for given, words in (
        (tmp_path, f"{tmp_path} is a folder; name a file in it, such as {tmp_path / 'report.html'}"),
        (tmp_path / "none/page.html", f"there is no folder {tmp_path / 'none'} to write page.html into; make it"),
    ):
        assert words in command("report", tmp_path, "-o", given, code=2)
