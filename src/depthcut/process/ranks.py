"""The processes that work on one search: the ranks that torchrun starts, or the shards of a job array.

Every process runs the same program and evaluates its share of what the search asks for. Ranks tell each other what they
found and go on together, so each sees the same values and takes the same decisions. Shards never meet: each ends where
it would need a value that another one finds, and `depthcut merge` brings together what they wrote down.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from depthcut.types import InputError, LostRankError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

MEETING_TIME = timedelta(minutes=10)
"""How long ranks wait for each other at the start."""
WAITING_TIME = timedelta(days=7)
"""How long a rank waits for what another one computes: as long as it takes. A dead one is noticed at once."""

T = TypeVar("T")


class ShareDoneError(Exception):
    """A shard has evaluated its share of what can be known without the others."""


@dataclass(frozen=True)
class Ranks:
    """Processes that do the same in lockstep; by default one that is alone.

    Attributes:
        index: of this process, 0-based.
        count: how many there are.
    """

    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes, prints and measures; the others only take their share of the work."""
        return self.index == 0

    def gather(self, value: T) -> list[T]:
        """The values of all processes in order, in all of them.

        Raises:
            LostRankError: one of them is there no more.
            ShareDoneError: there is nobody to ask (of a shard).
        """
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        gathered: list[T] = [value] * self.count
        with _noticing_the_lost():
            dist.all_gather_object(gathered, value)
        return gathered

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, in all of them; the others wait for it.

        Raises:
            LostRankError: one of them is there no more.
        """
        if self.count == 1:
            return make()
        import torch.distributed as dist

        made: list[T | None] = [make() if self.is_first else None]
        with _noticing_the_lost():
            dist.broadcast_object_list(made, src=0)
        return made[0]  # type: ignore[return-value]

    def device(self, wanted: str) -> str:
        """The device of this process: where none is named, a GPU of its own.

        Raises:
            InputError: there are fewer GPUs than processes on this machine.
        """
        import torch

        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if self.count == 1 or accelerator is None or wanted not in ("auto", accelerator.type):
            return wanted
        place, num_devices = int(os.environ.get("LOCAL_RANK", self.index)), torch.accelerator.device_count()
        if place >= num_devices:
            raise InputError(
                f"this machine has {num_devices} {accelerator.type} devices and more processes than that; start as "
                f"many as there are devices, or give --device {accelerator.type}:0 or cpu to let them share one"
            )
        return f"{accelerator.type}:{place}"

    @contextlib.contextmanager
    def one_voice(self) -> Iterator[None]:
        """While open, only the first process writes to standard output and standard error."""
        if self.is_first:
            yield
            return
        with (
            Path(os.devnull).open("w", encoding="utf-8") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            yield


ALONE = Ranks()


@dataclass(frozen=True)
class Shard(Ranks):
    """One of several processes that never meet.

    Attributes:
        merged: folder with what shards have found before, where there is any.
    """

    merged: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Reads `2/8`: the second of eight. Raises InputError on anything else."""
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise InputError(f"shard {text!r} is none: write I/N with I from 1 to N, for example 1/8 to 8/8")
        return cls(int(index) - 1, int(count))

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"

    @property
    def is_first(self) -> bool:
        """A shard does everything by itself."""
        return True

    def gather(self, value: T) -> list[T]:
        if self.count == 1:
            return [value]
        raise ShareDoneError

    def from_first(self, make: Callable[[], T]) -> T:
        return make()

    def device(self, wanted: str) -> str:
        return wanted


def join() -> Ranks:
    """The ranks that the environment speaks of, connected to each other; one that is alone where it does not.

    Done once in a process, undone when it ends.

    Raises:
        InputError: the environment is incomplete, or the ranks do not find each other.
    """
    return _joined()[0]


def tells() -> bool:
    """Whether this process is the first of the ranks to call it, so that an error of all ranks is printed once."""
    if not _joined.cache_info().currsize:
        return os.environ.get("RANK", "0") == "0"
    ranks, store = _joined()
    if store is None:
        return True
    try:
        return int(store.add("told", 1)) == 1
    except RuntimeError:
        # The store went with the process that kept it, which has told already.
        return ranks.is_first


def was_restarted() -> bool:
    """Whether torchrun has restarted this process after another one died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@functools.cache
def _joined() -> tuple[Ranks, Store | None]:
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return ALONE, None
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"WORLD_SIZE says that there are {os.environ['WORLD_SIZE']} ranks, but the environment lacks "
            f"{' and '.join(missing)}; start them by torchrun, or unset WORLD_SIZE"
        )
    # What works on files alone does without torch.
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        with _ending_at_once():
            store, index, count = next(rendezvous("env://", timeout=MEETING_TIME))
            store = PrefixStore(_agree_on_a_name(store, index, count), store)
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, store=store, rank=index, world_size=count, timeout=WAITING_TIME)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the ranks do not find each other ({reason}); start them by torchrun") from error
    atexit.register(dist.destroy_process_group)
    return Ranks(index, count), store


def _agree_on_a_name(store: Store, index: int, count: int) -> str:
    """A random name, the same in all processes of this job.

    torchrun keeps its store over restarts, so what a rank finds there may be the address of one that is dead. Each rank
    leaves a word of its own, and goes by the first one's name only where that was given to this word.
    """
    mine, given, name = uuid.uuid4().hex, "", ""
    store.set(f"here/{index}", mine)
    give_up = time.monotonic() + MEETING_TIME.total_seconds()
    while time.monotonic() < give_up:
        if index == 0:
            words = " ".join(store.get(f"here/{rank}").decode() for rank in range(count))
            if words != given:
                given, name = words, uuid.uuid4().hex
                store.set("given", f"{name} {given}")
            if store.check([f"{name}/agreed/{rank}" for rank in range(1, count)]):
                store.set(f"{name}/go", "")
                return name
        else:
            name, *of_ranks = store.get("given").decode().split()
            if of_ranks[index : index + 1] == [mine]:
                store.set(f"{name}/agreed/{index}", "")
                if store.check([f"{name}/go"]):
                    return name
        time.sleep(0.02)
    raise RuntimeError(f"not all of {count} came within {MEETING_TIME}")


@contextlib.contextmanager
def _noticing_the_lost() -> Iterator[None]:
    try:
        with _ending_at_once():
            yield
    except RuntimeError as error:
        raise LostRankError(str(error)) from error


@contextlib.contextmanager
def _ending_at_once() -> Iterator[None]:
    """While open, SIGTERM ends the process: a handler in Python would run only once the other ranks have answered."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
