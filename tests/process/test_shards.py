"""Shards that never meet must find, array by array, the plan that one process finds, and say what to run next."""

import re
import shlex
import shutil

import pytest
import torch
from jobs import OPTIONS, words
from safetensors.torch import load_file, save_file

import depthcut
from depthcut.process.ranks import Shard
from depthcut.types import InputError

pytestmark = pytest.mark.usefixtures("quick_reload")


@pytest.fixture
def command(command):
    """`command(words..., code=0)`: the last line that the command line prints, or the sentence it ends with."""
    return lambda *words, code=0: command(*words, code=code).strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "num_arrays"),
    [
        ({"method": "one-shot", "metric": "kl"}, 1),
        ({"method": "window"}, 1),
        ({"method": "deeper-look"}, 2),
        ({"method": "shapley", "unit": "block", "max_forwards": 30}, 2),
        ({"method": "finercut"}, 2),
        ({"calibration_samples": 2}, 7),
    ],
)
def test_shards_find_the_plan_of_one_process(command, model, tmp_path, options, num_arrays):
    whole = depthcut.prune(str(model), output=tmp_path / "whole", **(OPTIONS | options))
    given = words(model, tmp_path / "out", **options)
    count, evaluations, told = 3, [], ""
    for _ in range(num_arrays + 1):
        assert "nothing is left to evaluate" not in told
        for shard in range(1, count + 1):
            told = command(*given, "--shard", f"{shard}/{count}")
            evaluations.append(int(re.match(rf"shard {shard}/{count}: (\d+) evaluations are in ", told)[1]))
        assert told.endswith(f"when all shards have ended, run: depthcut merge -o {tmp_path / 'out'}")
        told = command("merge", "-o", tmp_path / "out")
        finish = re.search(r"finish it: depthcut (run .* --resume)$", told)[1]
    assert "nothing is left to evaluate" in told and evaluations[-count:] == [0] * count
    journal = (tmp_path / "whole" / "journal.jsonl").read_text().splitlines()
    assert sum(evaluations) == len(journal) - 1
    assert [path.name for path in tmp_path.glob(".*")] == [".out.unfinished"]
    command(*shlex.split(finish))
    assert (tmp_path / "out" / "plan.json").read_bytes() == (tmp_path / "whole" / "plan.json").read_bytes()
    assert sorted((tmp_path / "out" / "journal.jsonl").read_text().splitlines()) == sorted(journal)
    assert whole.plan.to_json() == (tmp_path / "out" / "plan.json").read_text()


def test_one_array_and_one_process_finish_a_search_together(command, model, tmp_path):
    options = {"method": "finercut", "remove": "3"}
    depthcut.prune(str(model), output=tmp_path / "whole", **(OPTIONS | options))
    for shard in ("1/2", "2/2"):
        command(*words(model, tmp_path / "out", **options), "--shard", shard)
    assert "give the same --shard commands again for what the search needs next" in command(
        "merge", "-o", tmp_path / "out"
    )
    command(*words(model, tmp_path / "out", **options), "--resume")
    assert (tmp_path / "out" / "plan.json").read_bytes() == (tmp_path / "whole" / "plan.json").read_bytes()


def test_a_killed_shard_goes_on_and_repeats_nothing(command, model, tmp_path):
    given = [*words(model, tmp_path / "out", method="finercut"), "--shard", "1/2"]
    command(*given)
    folder = tmp_path / ".out.unfinished.shard-1-of-2"
    whole = (folder / "journal.jsonl").read_text()
    lines = whole.splitlines(keepends=True)
    (folder / "journal.jsonl").write_text("".join(lines[:9]) + lines[9][:20])
    (folder / "share.json").unlink()
    command(*given)
    assert (folder / "journal.jsonl").read_text() == whole


def test_merging_says_which_shard_is_missing(command, model, tmp_path):
    output = tmp_path / "out"
    given = words(model, output, method="window")

    def refused(*words):
        return command(*words, code=2).removeprefix("depthcut: ")

    assert refused("merge", "-o", output) == (
        f"there are no shards of {output} to merge; begin with depthcut prune ... --shard 1/N"
    )
    command(*given, "--shard", "2/3")
    assert refused("merge", "-o", output) == (
        f"of the 3 shards of {output} 1 and 3 did not end yet; wait, or give --shard 1/3 again"
    )
    command(*given, "--shard", "1/2")
    assert "shards of different arrays lie beside" in refused("merge", "-o", output)
    shutil.rmtree(tmp_path / ".out.unfinished.shard-2-of-3")
    assert "was begun with other options" in refused(*given, "--seed", "1", "--shard", "1/2")
    command(*given, "--seed", "1", "--shard", "2/2")
    assert "were begun with different options" in refused("merge", "-o", output)


def test_shards_of_different_weights_are_not_merged(command, model, tmp_path):
    other = shutil.copytree(model, tmp_path / "model")
    given = words(other, tmp_path / "out", method="window")
    command(*given, "--shard", "1/2")
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones_like(tensors["model.norm.weight"])
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    command(*given, "--shard", "2/2")
    told = command("merge", "-o", tmp_path / "out", code=2)
    assert "evaluated with different models or texts" in told


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/0", "-1/2", "1/2/3"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(InputError, match="write I/N with I from 1 to N"):
        Shard.parse(text)


@pytest.mark.parametrize(
    ("options", "words_of_error"),
    [
        (["--method", "shortgpt"], "method shortgpt evaluates no removed sets that shards could divide"),
        (["--budget", "latency=0.8"], "every shard would measure a latency of its own"),
        (["--remove", "2", "--overwrite"], "a shard writes no model; leave --overwrite and --push-to-hub out"),
    ],
)
def test_a_shard_refuses_what_it_cannot_do(command, model, tmp_path, options, words_of_error):
    given = words(model, tmp_path / "out")
    place = given.index("--remove")
    told = command(
        *given[:place],
        *given[place + 2 :],
        *options,
        *([] if "--remove" in options or "--budget" in options else ["--remove", "2"]),
        "--shard",
        "1/2",
        code=2,
    )
    assert words_of_error in told and not list(tmp_path.iterdir())
