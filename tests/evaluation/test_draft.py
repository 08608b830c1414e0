"""The pruned model as a draft: the formula against a simulation, and real acceptance against the expected one."""

import importlib
import random
from pathlib import Path

import pytest
import torch

import tiny
from depthcut.evaluation.draft import expected_speedup, expected_tokens, with_drafts
from depthcut.results import Measurement
from depthcut.run import on_model

SPEEDS = {"prompt": 400.0, "short_decode": 20.0}


def rows(acceptance, draft_speed):
    """What a run measures of a dense model and of a pruned one that is so much faster."""
    speeds = [
        Measurement(name=f"{phase}_tokens_per_second", value=value * factor, unit="tokens/s", model=model)
        for phase, value in SPEEDS.items()
        for model, factor in (("dense", 1), ("pruned", draft_speed))
    ]
    accepted = [
        Measurement(name=name, value=acceptance, unit="share of tokens", model="pruned", data="text")
        for name in ("draft_acceptance", "draft_acceptance_greedy")
    ]
    return [*accepted, *speeds]


@pytest.mark.parametrize(("acceptance", "drafted"), [(0.3, 1), (0.8, 4), (0.95, 8)])
def test_expected_tokens_are_those_of_a_simulation(acceptance, drafted):
    generator, rounds = random.Random(0), 20_000

    def one_pass():
        accepted = 0
        while accepted < drafted and generator.random() < acceptance:
            accepted += 1
        return accepted + 1

    yields = [one_pass() for _ in range(rounds)]
    mean = sum(yields) / rounds
    error = (sum((value - mean) ** 2 for value in yields) / rounds**2) ** 0.5
    assert expected_tokens(acceptance, drafted) == pytest.approx(mean, abs=4 * error)


def test_a_draft_that_costs_nothing_and_is_always_right_multiplies_the_speed():
    assert expected_speedup(1.0, 4, draft_share=0.0, token_share=0.0) == 5
    assert expected_speedup(1.0, 4, draft_share=1.0, token_share=0.0) == 1


def test_a_check_that_is_bound_by_arithmetic_costs_its_tokens():
    assert expected_speedup(1.0, 4, draft_share=0.0, token_share=0.5) == 2


def test_the_best_length_is_reported_for_both_ways_of_decoding():
    found = {row.name: row for row in with_drafts(rows(acceptance=0.9, draft_speed=10))}
    best = max(range(1, 9), key=lambda drafted: expected_speedup(0.9, drafted, 0.1, 20 / 400))
    for name in ("draft_speedup", "draft_speedup_greedy"):
        assert found[name].value == expected_speedup(0.9, best, 0.1, 20 / 400)
        assert found[name].data == f"{best} tokens a draft, acceptance on text"


def test_without_speeds_there_is_no_speedup():
    acceptances = rows(0.9, 10)[:2]
    assert with_drafts(acceptances) == acceptances


@pytest.fixture
def drafts(monkeypatch):
    """The benchmark that compares with what transformers accepts."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("draft")


@pytest.mark.parametrize("sampled", [True, False])
@torch.no_grad()
def test_transformers_accepts_what_is_expected(drafts, sampled):
    """At the positions that it looks at: greedily all the same, sampled within four standard errors."""
    dense = tiny.model(vocab_size=64)
    dense.generation_config.eos_token_id = None
    draft = on_model.remove(dense, "2.attn,4.attn")
    draft.generation_config = type(dense.generation_config).from_dict(dense.generation_config.to_dict())
    hits, expected = 0, []
    for seed in range(3):
        torch.manual_seed(seed)
        prompt = torch.randint(3, 64, (1, 6))
        with drafts.Counter() as counter:
            written, _ = drafts.write(dense, prompt, 50, sampled, draft, 3)
        assert counter.rounds and all(matches <= length for _, length, matches in counter.rounds)
        hits += counter.accepted
        expected.append(drafts.acceptances(dense, draft, written, sampled)[counter.looked_at])
    chances = torch.cat(expected)
    assert len(chances) > 50 and 0 < hits < len(chances)
    error = float((chances * (1 - chances)).sum().sqrt())
    assert error > 0 if sampled else error == 0
    assert abs(hits - float(chances.sum())) <= 4 * error
