"""Runs that do not end leave no output, and can be gone on with."""

import shutil

import pytest
import torch

import depthcut
import tiny
from depthcut.export import VerificationError, hf
from depthcut.run import measure, plan, write
from depthcut.run.recipe import Recipe
from depthcut.types import InputError
from example_run import OPTIONS, WRITTEN, logits, read, reloaded, without_cost, words


@pytest.mark.parametrize("stage", ["verify_directory", "write_report"])
def test_a_killed_run_leaves_no_output_and_can_be_resumed(pruned, models, tmp_path, monkeypatch, stage):
    def run(**changes):
        return depthcut.prune(str(models["llama"]), output=tmp_path / "out", **OPTIONS, **changes)

    class Killed(BaseException):
        pass

    def kill(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(write, stage, kill)
        with pytest.raises(Killed):
            run()
    assert [file.name for file in tmp_path.iterdir()] == [".out.unfinished"]
    with pytest.raises(InputError, match=r"pass --resume to go on with it, or --overwrite to throw it away"):
        run()
    with pytest.raises(InputError, match="was begun with other options"):
        depthcut.prune(str(models["llama"]), output=tmp_path / "out", resume=True, **(OPTIONS | {"remove": "3"}))

    with monkeypatch.context() as patch:
        patch.setattr(plan, "static_scores", lambda *_: pytest.fail("the scores were computed again"))
        result = run(resume=True)
    assert without_cost(read(tmp_path / "out")) == without_cost(read(pruned().output))
    assert {file.name for file in tmp_path.iterdir()} == {"out"}
    assert {file.name for file in result.output.iterdir()} == WRITTEN
    assert torch.equal(logits(reloaded(result.output)), logits(pruned().model))


def test_overwriting_begins_anew(models, tmp_path, monkeypatch):
    def run(**changes):
        return depthcut.prune(str(models["llama"]), output=tmp_path / "out", **(OPTIONS | changes))

    with monkeypatch.context() as patch:
        patch.setattr(write, "write_report", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run()
    run(overwrite=True, remove="3")
    assert {file.name for file in tmp_path.iterdir()} == {"out"}
    (tmp_path / "out" / "model-00002-of-00002.safetensors").write_text("of a larger model")
    run(overwrite=True, remove="1")
    assert {file.name for file in (tmp_path / "out").iterdir()} == WRITTEN
    assert reloaded(tmp_path / "out").config.num_hidden_layers == tiny.NUM_BLOCKS - 1


def test_an_output_stays_while_its_replacement_fails(models, tmp_path, monkeypatch):
    def run(**changes):
        return depthcut.prune(str(models["llama"]), output=tmp_path / "out", **(OPTIONS | changes))

    run()
    before = (tmp_path / "out" / "plan.json").read_text()
    monkeypatch.setattr(write, "verify_directory", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(remove="1", overwrite=True)
    assert (tmp_path / "out" / "plan.json").read_text() == before


def test_one_process_at_a_time_works_on_an_output(models, tmp_path, monkeypatch):
    def run(*_):
        with pytest.raises(InputError, match="another process is working on"):
            depthcut.prune(str(models["llama"]), output=tmp_path / "out", resume=True, **OPTIONS)

    monkeypatch.setattr(write, "verify_directory", run)
    depthcut.prune(str(models["llama"]), output=tmp_path / "out", **OPTIONS)
    assert {file.name for file in tmp_path.iterdir()} == {"out"}


def test_a_model_that_was_written_wrongly_does_not_appear(models, tmp_path, monkeypatch, command):
    def write_wrongly(model, tokenizer, folder):
        made = shutil.copytree(models["llama"], folder.parent / "wrong")
        hf.write_directory(model, tokenizer, folder)
        shutil.copy(made / "model.safetensors", folder)
        shutil.rmtree(made)

    monkeypatch.setattr(write, "write_directory", write_wrongly)
    message = command("prune", models["llama"], "-o", tmp_path / "out", *words(OPTIONS), code=1)
    assert message.splitlines()[-1].startswith("depthcut: the written model holds beside the model's the tensor model.")
    assert not (tmp_path / "out").exists()
    with pytest.raises(VerificationError):
        depthcut.prune(str(models["llama"]), output=tmp_path / "out", resume=True, **_as_recipe(models))


def _as_recipe(models):
    recipe = Recipe.build(model=str(models["llama"]), **OPTIONS)
    return {name: value for name, value in recipe.model_dump().items() if name != "model"}


def test_ctrl_c_says_how_to_go_on(models, tmp_path, monkeypatch, command):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "compare", interrupt)
    message = command("prune", models["llama"], "-o", tmp_path / "out", *words(OPTIONS), code=130)
    assert message.splitlines()[-1] == "depthcut: interrupted; the same command with --resume goes on"
    assert [file.name for file in tmp_path.iterdir()] == [".out.unfinished"]


def test_a_command_that_cannot_be_resumed_leaves_nothing(pruned, models, tmp_path, monkeypatch, command):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    plan = pruned().output / "plan.json"
    monkeypatch.setattr(measure, "compare", interrupt)
    command("apply", models["llama"], plan, "-o", tmp_path / "out", "--evaluation-length", "16", code=130)
    assert not list(tmp_path.iterdir())
