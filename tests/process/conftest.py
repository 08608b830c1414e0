"""A tiny model to search in, and ranks that are threads of this process."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest
from jobs import OPTIONS

import tiny
from depthcut.process.ranks import Ranks
from depthcut.run.plan import find_plan
from depthcut.run.recipe import Recipe
from depthcut.run.session import find_model, load, pose_problem, prepare


@dataclass(frozen=True)
class ThreadRanks(Ranks):
    """Ranks that meet in one process."""

    meeting: "Meeting | None" = None

    def gather(self, value):
        return self.meeting.exchange(self.index, value)

    def from_first(self, make):
        return self.gather(make() if self.is_first else None)[0]


LOADING = threading.Lock()
"""While transformers loads a model it replaces functions of its own for all threads."""


class Meeting:
    def __init__(self, count):
        self.values, self.barrier = [None] * count, threading.Barrier(count, timeout=120)

    def exchange(self, index, value):
        self.values[index] = value
        self.barrier.wait()
        gathered = list(self.values)
        self.barrier.wait()
        return gathered


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("distributed") / "llama")


@pytest.fixture(scope="session")
def session_of(model):
    """`session_of(**options)`: a session with its problem, before the model is loaded."""

    def make(**options):
        recipe = Recipe.build(model=str(model), **(OPTIONS | options))
        source = find_model(recipe)
        return prepare(recipe, source), pose_problem(recipe, source)

    return make


@pytest.fixture(scope="session")
def search(session_of):
    """`search(num_ranks, folder, **options)`: the plan of each rank, and the unit evaluations that it ran."""

    def run(num_ranks, folder=None, **options):
        session, problem = session_of(**options)
        meeting = Meeting(num_ranks)

        def of_rank(index):
            ranks = ThreadRanks(index, num_ranks, meeting)
            try:
                with LOADING:
                    loaded = load(session)
                plan = find_plan(loaded, replace(problem), folder, ranks)[1]
            except BaseException:
                meeting.barrier.abort()
                raise
            return plan.to_json(), loaded.stream.unit_evaluations

        with ThreadPoolExecutor(num_ranks) as pool:
            found = [
                future.exception() or future.result() for future in [pool.submit(of_rank, i) for i in range(num_ranks)]
            ]
        for failed in [each for each in found if isinstance(each, BaseException)]:
            if not isinstance(failed, threading.BrokenBarrierError):
                raise failed
        return found

    return run
