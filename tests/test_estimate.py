"""What `--dry-run` says a run takes must be what it takes, and needs no weights."""

import itertools
import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import tiny
from depthcut.ablation.ablation import Ablation
from depthcut.commands.terminal import print_outlook
from depthcut.importance.static import static_scores
from depthcut.methods.budget import Budget
from depthcut.methods.greedy import Greedy
from depthcut.methods.problem import Problem
from depthcut.model.architectures import find_architecture
from depthcut.model.flops import measure_work
from depthcut.model.load import ModelSource
from depthcut.model.stream import DecoderStream
from depthcut.model.units import measure_sizes
from depthcut.preview import device_profiles
from depthcut.preview import outlook as outlook_module
from depthcut.preview.device_profiles import PUBLISHED, UTILISATION, find_profile, measure_here
from depthcut.preview.dry_run import preview
from depthcut.preview.estimate import estimate
from depthcut.process.memory import Room
from depthcut.run.recipe import Recipe
from depthcut.run.session import find_model, pose_problem
from depthcut.types import InputError

ROOM = Room(2**30, None)
SAMPLES, LENGTH = 8, 32


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def configuration(llama, tmp_path):
    """A directory with a configuration and nothing else."""
    (tmp_path / "large").mkdir()
    shutil.copy(llama / "config.json", tmp_path / "large")
    return tmp_path / "large"


@pytest.fixture
def weights_stay_unread(monkeypatch):
    monkeypatch.setattr(ModelSource, "load_model", lambda *_: pytest.fail("weights were loaded"))


def recipe(**changes):
    options = {
        "model": "any",
        "unit": "sublayer",
        "remove": "3",
        "repair": "none",
        "calibration": "stdlib",
        "calibration_samples": SAMPLES,
        "calibration_length": LENGTH,
        "evaluation_samples": 2,
        "evaluation_length": LENGTH,
    }
    return Recipe.build(**(options | changes))


def posed(stream, ablation=None, remove="3", unit="sublayer"):
    return Problem(
        architecture=stream.architecture,
        num_blocks=tiny.NUM_BLOCKS,
        sizes=measure_sizes(stream.model, stream.architecture),
        unit=unit,
        budget=Budget.parse(remove, None),
        ablation=ablation,
    )


@pytest.mark.parametrize("family", tiny.short_and_long(["llama", "gemma3_text", "mixtral", "gpt2"], ["mixtral"]))
def test_scoring_and_search_take_the_operations_that_were_estimated(family):
    model = tiny.model(family, attn_implementation="eager")
    model.config._experts_implementation = "eager"
    stream = DecoderStream(model, find_architecture(model.config))
    text = tiny.samples(SAMPLES, LENGTH)
    with FlopCounterMode(display=False) as counter:
        static_scores(stream, text)
        ablation = Ablation(stream, text, "kl")
        Greedy(strategy="exhaustive", swap=False).path(posed(stream, ablation))
    expected = estimate(
        recipe(method="greedy,strategy=exhaustive", swap=False),
        posed(stream),
        measure_work(model, stream.architecture),
        ROOM,
        weight_bytes=posed(stream).sizes.parameters * 4,
    )
    phases = {phase.name: phase for phase in expected.phases}
    assert phases["score"].flops + phases["search"].flops == pytest.approx(counter.get_total_flops(), rel=0.1)
    evaluations = phases["score"].unit_evaluations + phases["search"].unit_evaluations
    assert evaluations == pytest.approx(stream.unit_evaluations, rel=0.1)


@pytest.mark.parametrize("unit", ["sublayer", "block", "pair"])
def test_a_lazy_search_takes_no_more_than_was_estimated(unit):
    model = tiny.model(num_hidden_layers=16)
    stream = DecoderStream(model, find_architecture(model.config))
    problem = replace(posed(stream, Ablation(stream, tiny.samples(SAMPLES, LENGTH), "kl"), "4", unit), num_blocks=16)
    Greedy().path(problem)
    expected = Greedy().estimate(problem, SAMPLES)
    # In random models it is the last blocks that go, whose candidates are cheaper than the mean.
    assert stream.unit_evaluations <= 1.05 * expected.unit_evaluations


def test_the_counts_on_smollm2_are_near_those_that_were_measured():
    # 15 of 60 sublayers on 8 sequences, docs/log.md: exhaustive 169 712, lazy 17 794.
    model = tiny.model(num_hidden_layers=30)
    stream = DecoderStream(model, find_architecture(model.config))
    problem = replace(posed(stream, remove="15"), num_blocks=30)
    assert Greedy(strategy="exhaustive").estimate(problem, 8).unit_evaluations == pytest.approx(169_712, rel=0.01)
    assert Greedy().estimate(problem, 8).unit_evaluations == pytest.approx(17_794, rel=0.15)


def test_a_budget_of_parameters_takes_as_many_steps_as_units_of_mean_size():
    stream = DecoderStream(tiny.model(), find_architecture(tiny.config("llama")))
    problem = replace(posed(stream, unit="block"), budget=Budget("parameters", 0.7))
    sizes = problem.sizes
    block = sum(size.parameters for size in sizes.units.values()) / tiny.NUM_BLOCKS
    assert problem.likely_steps == -(-0.3 * sizes.parameters // block)


@pytest.mark.usefixtures("weights_stay_unread")
def test_a_configuration_alone_is_estimated_and_said_to_be_alone(command, configuration, tmp_path):
    options = ["--remove", "2", "--unit", "block", "--dry-run", "--device-profile", "h100", "--devices", "8"]
    printed = command("prune", configuration, "-o", tmp_path / "out", *options)
    assert "no weights here: estimated from the configuration" in printed
    assert "on 8 x h100 at 67 TFLOP/s" not in printed and "TFLOP/s (40% of the peak)" in printed
    assert not (tmp_path / "out").exists()
    printed = command("prune", configuration, "-o", tmp_path / "out", "--remove", "2", code=2)
    assert "holds no safetensors weights" in printed


@pytest.mark.usefixtures("weights_stay_unread")
def test_with_and_without_weights_the_estimate_is_the_same(llama, configuration):
    with_weights, without = (
        preview(recipe(model=str(model)), device_profile="a100").estimate for model in (llama, configuration)
    )
    assert with_weights == without


def test_the_stages_are_those_of_the_recipe(configuration):
    def stages(**changes):
        found = preview(recipe(model=str(configuration), **changes), device_profile="h100")
        return [phase.name for phase in found.estimate.phases]

    assert stages() == ["load", "score", "search", "evaluate"]
    assert stages(repair=None) == ["load", "score", "search", "repair", "evaluate"]
    assert stages(method="shortgpt", unit="block") == ["load", "score", "evaluate"]


def test_hours_follow_from_operations_bytes_and_devices():
    model = tiny.model()
    stream = DecoderStream(model, find_architecture(model.config))
    expected = estimate(
        recipe(),
        posed(stream),
        measure_work(model, stream.architecture),
        ROOM,
        weight_bytes=posed(stream).sizes.parameters * 4,
    )
    search = next(phase for phase in expected.phases if phase.name == "search")
    device = find_profile("h100", torch.bfloat16, 32, 48)
    assert device.flops_per_second == UTILISATION * PUBLISHED["h100"].half * 1e12
    slow = replace(device, flops_per_second=1e6, memory_bytes_per_second=1e30)
    assert expected.seconds(search, slow) == pytest.approx(search.flops / 1e6)
    assert expected.seconds(search, slow, 4) == pytest.approx(search.flops / 4e6)
    # What does not stay comes in once for every sweep, the dense pass and one a round, on each device.
    half = Room(2**20, round(expected.weight_bytes / 2))
    paged = estimate(
        recipe(),
        posed(stream),
        measure_work(model, stream.architecture),
        half,
        weight_bytes=round(expected.weight_bytes),
    )
    slow_bus = replace(device, host_bytes_per_second=1.0)
    assert search.sweeps == 1 + 3
    two_blocks = 2 * expected.weight_bytes / tiny.NUM_BLOCKS
    for num_devices in (1, 4):
        seconds = paged.seconds(search, slow_bus, num_devices)
        assert seconds == pytest.approx(search.sweeps * (expected.weight_bytes / 2 + two_blocks))


def test_memory_follows_what_a_search_keeps():
    model = tiny.model()
    stream = DecoderStream(model, find_architecture(model.config))
    work = measure_work(model, stream.architecture)
    ablation = Ablation(stream, tiny.samples(SAMPLES, LENGTH), "kl")
    ablation([])
    kept = ablation.kept_bytes
    options = recipe(method="greedy,strategy=exhaustive")
    search = next(
        phase for phase in estimate(options, posed(stream), work, ROOM, weight_bytes=0).phases if phase.name == "search"
    )
    logits = 32 * tiny.VOCABULARY * 4 + 4 * 32 * tiny.VOCABULARY * 4
    assert search.working_bytes - logits == pytest.approx(kept, rel=0.05)


def test_this_machine_is_measured_in_seconds():
    device = measure_here(torch.float32, 64, 128)
    assert 1e6 < device.flops_per_second < 1e16 and device.is_here


def test_a_busy_machine_is_called_one(monkeypatch):
    ticks = itertools.count()
    # A clock that stands still half of the time is what a process sees that waits for others.
    monkeypatch.setattr(
        device_profiles, "time", SimpleNamespace(perf_counter=lambda: next(ticks), process_time=lambda: next(ticks) / 2)
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    busy = measure_here(torch.float32, 64, 128, device="cpu", seconds=20)
    assert busy.name == "this machine with 1 thread, of which other work leaves 50% free now"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dry-run", "--device-profile", "h10"], "unknown device profile 'h10'; did you mean h100 or h200 or a100?"),
        (["--dry-run", "--devices", "0"], "0 devices cannot run anything; give --devices 1 or more"),
        (["--devices", "2"], "belong to --dry-run; add it, or leave them out"),
    ],
)
@pytest.mark.usefixtures("weights_stay_unread")
def test_what_cannot_be_estimated_is_refused(command, llama, tmp_path, options, words):
    assert words in command("prune", llama, "-o", tmp_path / "out", "--remove", "2", *options, code=2)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_prints_every_stage(command, configuration, tmp_path):
    shape = json.loads((configuration / "config.json").read_text())
    assert shape["num_hidden_layers"] == tiny.NUM_BLOCKS
    options = ["--remove", "2", "--dry-run", "--device-profile", "h100"]
    printed = command("prune", configuration, "-o", tmp_path / "out", *options)
    for stage in ("load", "score", "search", "repair", "evaluate"):
        assert re.search(rf"^{stage}\b", printed, re.MULTILINE), printed
    assert printed.rstrip().endswith("nothing was written (dry run)")


def test_no_device_is_made_up():
    with pytest.raises(InputError, match="unknown device profile"):
        find_profile("tpu", torch.float32, 32, 48)


class TestOutlook:
    """What is said before long work begins."""

    def test_it_is_the_estimate_at_this_machines_speed(self, llama, monkeypatch):
        monkeypatch.setattr(outlook_module, "SHORT_FLOPS", 0.0)
        speed = find_profile("h100", torch.float32, 64, 128)
        monkeypatch.setattr(outlook_module, "measure_here", lambda *_, **__: speed)
        told = recipe(model=str(llama))
        source = find_model(told)
        found = outlook_module.outlook(told, source, pose_problem(told, source))
        expected = preview(told, device_profile="h100").estimate
        assert list(found.stages) == [phase.name for phase in expected.phases]
        assert found.seconds == pytest.approx(3600 * expected.hours(speed))

    def test_short_work_is_neither_measured_nor_foretold(self, llama, monkeypatch):
        monkeypatch.setattr(outlook_module, "measure_here", lambda *_, **__: pytest.fail("measured"))
        told = recipe(model=str(llama))
        source = find_model(told)
        assert outlook_module.outlook(told, source, pose_problem(told, source)) is None

    def test_one_line_says_how_long_and_what_dominates(self, capsys):
        print_outlook(outlook_module.Outlook("this machine", {"load": 1.0, "search": 300.0, "repair": 119.0}))
        told = capsys.readouterr().err
        assert told.startswith("this run takes about 7 min on this machine, 5 min of it to search;")
        assert told.count("\n") == 1


def test_what_the_model_writes_is_a_stage_of_one_pass_over_its_share_of_the_longest_text():
    model = tiny.model()
    stream = DecoderStream(model, find_architecture(model.config))

    def stages(**changes):
        work = measure_work(model, stream.architecture)
        of_run = estimate(recipe(**changes), posed(stream), work, ROOM, weight_bytes=1000).phases
        return {phase.name: phase for phase in of_run}

    assert "write" not in stages()
    alone = stages(calibration="self")["write"]
    assert alone.unit_evaluations == SAMPLES * len(stream.units) and alone.sweeps == LENGTH
    assert alone.weights_read == 1000 * LENGTH
    assert stages(calibration="self+stdlib")["write"].unit_evaluations == alone.unit_evaluations / 2
    assert stages(calibration="self", repair="refit")["write"].unit_evaluations == 4 * alone.unit_evaluations
