"""A search divided among processes must find what one finds, each doing its share and none anything twice."""

import contextlib
import itertools
import json

import pytest
from jobs import OPTIONS

import tiny
from depthcut.ablation.ablation import Ablation
from depthcut.model.architectures import find_architecture
from depthcut.model.stream import DecoderStream
from depthcut.process import ranks
from depthcut.process.journal import Journal
from depthcut.process.ranks import Ranks
from depthcut.run import plan
from depthcut.run.recipe import Recipe
from depthcut.run.repair import check_division
from depthcut.types import InputError, Latency

SEARCHES = {
    "greedy": {},
    "greedy over sublayers": {"unit": "sublayer", "remove": None, "budget": "parameters=0.7"},
    "finercut": {"method": "finercut", "remove": "3"},
    "evopress": {"method": "evopress"},
    "window": {"method": "window"},
    "leave one out": {"method": "one-shot", "metric": "kl"},
    "shapley": {"method": "shapley", "unit": "block", "max_forwards": 60},
    "deeper-look": {"method": "deeper-look"},
    "ceiling": {"method": "sleb", "remove": None, "max_increase": "kl=0.1"},
    "latency": {"method": "sleb", "remove": None, "budget": "latency=0.7"},
}


@pytest.mark.parametrize("name", SEARCHES)
def test_the_plan_is_the_same_byte_for_byte_for_any_number_of_ranks(search, monkeypatch, name):
    seconds = itertools.count(1)
    # Each rank would measure another latency; the first one's holds for all.
    monkeypatch.setattr(
        plan,
        "measure_latency",
        lambda *_: Latency(token_seconds=12, unit_seconds={"attn": 1, "ffn": next(seconds)}),
    )
    [(alone, all_evaluations)] = search(1, **SEARCHES[name])
    seconds = itertools.count(1)
    for num_ranks in (2, 3):
        seconds = itertools.count(1)
        found = search(num_ranks, **SEARCHES[name])
        assert {plan for plan, _ in found} == {alone}
        assert max(evaluations for _, evaluations in found) < 0.9 * all_evaluations


def test_two_ranks_run_about_half_of_the_unit_evaluations_each(search):
    for options in ({}, {"method": "finercut"}, {"method": "shapley", "unit": "block", "max_forwards": 60}):
        [(_, alone)] = search(1, **options)
        # Scoring is one pass that the first makes alone; what is divided is the rest.
        scoring = 2 * tiny.NUM_BLOCKS * OPTIONS["calibration_samples"]
        (_, first), (_, second) = search(2, **options)
        assert max(first - scoring, second) <= 0.65 * (alone - scoring)


def test_more_ranks_than_batches_divide_the_sets_of_a_batch(search):
    few = {"calibration_samples": 2, "method": "finercut", "remove": "6"}
    [(alone, all_evaluations)] = search(1, **few)
    found = search(5, **few)
    assert {plan for plan, _ in found} == {alone}
    assert max(evaluations for _, evaluations in found) < 0.6 * all_evaluations


@pytest.fixture
def ablation_of():
    model = tiny.model()
    stream = DecoderStream(model, find_architecture(model.config))

    def make(num_samples, ranks, **options):
        return Ablation(stream, tiny.samples(num_samples), "kl", ranks=ranks, **options)

    return make


@pytest.mark.parametrize("num_samples", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_every_value_is_evaluated_by_exactly_one_rank(ablation_of, num_samples, count):
    shares = []
    for index in range(count):
        ablation = ablation_of(num_samples, Ranks(index, count))
        sets = [frozenset([unit]) for unit in ablation.stream.units]
        wanted = ablation._in_order(sets, range(ablation.num_batches))
        shares.append(ablation._division.share(wanted, ablation._ledger.num_known))
        assert {batch for _, batch in shares[-1]} <= set(ablation._compared)
    assert sorted(itertools.chain(*shares), key=wanted.index) == wanted
    assert min(map(len, shares)) > 0 and max(map(len, shares)) <= len(sets) * -(-num_samples // count)


def test_a_rank_keeps_the_streams_of_its_own_batches_only(ablation_of):
    whole, half = ablation_of(4, Ranks()), ablation_of(4, Ranks(1, 2))
    assert list(whole._compared) == [0, 1, 2, 3] and list(half._compared) == [1, 3]
    assert half.batch_sizes == whole.batch_sizes and half.weights.equal(whole.weights)


def test_the_cost_in_a_plan_is_what_one_process_ran(search):
    for method in ("greedy", "finercut", "shapley"):
        [(plan, evaluations)] = search(1, method=method, unit="block")
        probing = evaluations - json.loads(plan)["cost"]["unit_evaluations"]
        [(other, more)] = search(1, method=method, unit="block", remove="3")
        assert more - json.loads(other)["cost"]["unit_evaluations"] == probing, method


class StoppedError(Exception):
    """What a test kills a rank with."""


def test_a_search_goes_on_with_other_numbers_of_ranks_and_repeats_nothing(search, monkeypatch, tmp_path):
    alone = search(1, tmp_path, method="finercut")[0][0]
    needed = (tmp_path / "journal.jsonl").read_text().splitlines()
    folder = tmp_path / "killed"
    folder.mkdir()
    add = Journal.add
    with monkeypatch.context() as patch:
        for num_ranks, after in ((3, 8), (2, 8), (1, 8)):
            counted = itertools.count()

            def kill(journal, line, counted=counted, after=after):
                add(journal, line)
                if next(counted) == after:
                    raise StoppedError

            patch.setattr(Journal, "add", kill)
            with pytest.raises(StoppedError):
                search(num_ranks, folder, method="finercut")
    found = search(2, folder, method="finercut")
    assert {plan for plan, _ in found} == {alone}
    assert sorted(folder.glob("journal*")) == [folder / "journal.jsonl"]
    lines = (folder / "journal.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines)) and sorted(lines[1:]) == sorted(needed[1:]) and lines[0] == needed[0]


def test_what_ranks_wrote_is_united_however_the_last_one_was_cut_off(tmp_path, capsys):
    header, path = '{"journal": 1, "objective": "kl"}', tmp_path / "journal.jsonl"
    path.write_text(f'{header}\n{{"value": 1}}\n')
    (tmp_path / "journal.rank-1.jsonl").write_text(f'{header}\n{{"value": 2}}\n{{"val')
    (tmp_path / "journal.rank-2.jsonl").write_text(header[:7])
    # As left by a process that was killed while it united them.
    (tmp_path / "journal.rank-3.jsonl").write_text(f'{header}\n{{"value": 1}}\n')
    assert Journal(path, {"objective": "kl"}).lines == [{"value": 1}, {"value": 2}]
    assert "journal.rank-1.jsonl: dropped its last line" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / "journal.rank-1.jsonl").write_text('{"journal": 1, "objective": "js"}\n{"value": 4}\n')
    with pytest.raises(InputError, match="journal.rank-1.jsonl and .* are of different models, texts or objectives"):
        Journal(path, {"objective": "kl"})


def test_an_incomplete_environment_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(InputError, match="2 ranks, but the environment lacks MASTER_ADDR and MASTER_PORT; start"):
        ranks._joined.__wrapped__()


@pytest.mark.parametrize(
    ("repair", "environment", "words"),
    [
        ("lora,batch_size=4", {}, "lora trains on 4 sequences an update, which 3 ranks .* give lora,batch_size=6"),
        ("refit+distill", {"ACCELERATE_USE_FSDP": "true"}, "the first FSDP flattens .* give .* --fsdp_version 2"),
        ("refit+distill,batch_size=3", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, None),
        ("qlora,batch_size=3", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "4-bit weights .* give lora"),
        ("lora,batch_size=3", {"ACCELERATE_USE_DEEPSPEED": "true"}, "its own optimiser .* DeepSpeed's"),
        ("refit", {"ACCELERATE_USE_FSDP": "true"}, None),
        ("low-rank,batch_size=4", {}, None),
    ],
)
def test_ranks_that_cannot_train_together_are_refused(monkeypatch, repair, environment, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    recipe = Recipe.build(model="llama", remove="2", repair=repair)
    with pytest.raises(InputError, match=words) if words else contextlib.nullcontext():
        check_division(recipe, Ranks(0, 3))


@pytest.mark.parametrize(
    "given", [["score", "llama", "-o", "out"], ["ls"], ["prune", "llama", "-o", "out", "--shard", "1/2"]]
)
def test_what_is_not_divided_is_refused_among_ranks(monkeypatch, command, given):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert "is not divided among ranks; run it without torchrun" in command(*given, code=2)
