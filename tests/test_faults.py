"""What goes wrong outside of depthcut ends with one sentence and exit code 2, loses nothing and can be gone on with."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import depthcut
import tiny
from depthcut.ablation.ablation import Ablation
from depthcut.ablation.comparator import ComparedBatch
from depthcut.importance.static import static_scores
from depthcut.methods.budget import Budget
from depthcut.methods.greedy import Greedy
from depthcut.methods.problem import Problem
from depthcut.model.architectures import find_architecture
from depthcut.model.block_call import BlockCaller
from depthcut.model.load import resolve
from depthcut.model.stream import DecoderStream
from depthcut.model.units import measure_sizes
from depthcut.process.faults import is_out_of_memory, is_out_of_space
from depthcut.process.journal import Journal
from depthcut.run import plan, prune, write
from depthcut.types import InputError, ResourceError, Unit

OPTIONS = {
    "unit": "block",
    "remove": "2",
    "repair": "none",
    "calibration_samples": 4,
    "calibration_length": 16,
    "evaluation_samples": 2,
    "evaluation_length": 16,
    "speed": False,
}
DISK_BYTES = 8 * 2**20
NOBODY = 65534
PROGRESS = re.compile("(scoring|searching|evaluating|timing|Loading weights): ")
CPU_ALLOCATOR = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
OUT_OF_MEMORY = [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), RuntimeError(CPU_ALLOCATOR)]


def words(options):
    """Options of the Python functions as words of the command line."""
    given = []
    for name, value in options.items():
        option = name.replace("_", "-")
        given += [f"--{option}" if value else f"--no-{option}"] if isinstance(value, bool) else [f"--{option}", value]
    return [str(word) for word in given]


def plan_of(folder):
    return json.loads((folder / "plan.json").read_text()) | {"cost": None}


pytestmark = pytest.mark.usefixtures("quick_reload")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def command(outcome):
    """`command(words..., code=...)`: the lines that the command line tells beside progress."""

    def run(*words, code):
        ended, printed = outcome(*words)
        told = [line for line in printed.err.splitlines() if line and not PROGRESS.match(line)]
        assert ended == code, told
        return told

    return run


# Disks


class SmallDisk:
    """A file system of a few megabytes; where none may be mounted, files that may not grow stand for a full one."""

    def __init__(self, folder):
        self.folder = folder
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
        has_mount = shutil.which("mount") is not None
        self.is_mounted = has_mount and subprocess.run(mount, capture_output=True, check=False).returncode == 0
        self._limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self, growing=None):
        """Leaves room for a few bytes.

        Args:
            growing: a file that is being written.
        """
        if self.is_mounted:
            free = os.statvfs(self.folder)
            (self.folder / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize))
        else:
            size = growing.stat().st_size if growing else 0
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, self._limit[1]))

    def make_room(self):
        (self.folder / "filler").unlink(missing_ok=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limit)


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    made = SmallDisk(folder)
    yield made
    made.make_room()
    if made.is_mounted:
        subprocess.run(["umount", str(folder)], check=True)


def fill_before(monkeypatch, disk, owner, name, call=1):
    """Has the disk fill up just before the given call of a function."""
    calls = 0
    real = getattr(owner, name)

    def run(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            disk.fill(args[0].path if owner is Journal else None)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, run)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (prune, "find_plan", 1),
        (plan, "static_scores", 1),
        (Journal, "add", 9),
        (write, "write_directory", 1),
        (write, "write_report", 1),
    ],
    ids=["scores", "scoring", "journal", "model", "report"],
)
def test_a_full_disk_loses_nothing(llama, tmp_path, disk, monkeypatch, command, owner, name, call):
    output = disk.folder / "out"
    given = ["prune", llama, "-o", output, *words(OPTIONS)]
    with monkeypatch.context() as patch:
        fill_before(patch, disk, owner, name, call)
        told = command(*given, code=2)
    assert len(told) == 1
    assert "there is no space left" in told[0] and told[0].endswith("then the same command with --resume goes on")
    assert not output.exists()
    disk.make_room()
    told = command(*given, "--resume", code=0)
    assert told == (["journal.jsonl: dropped its last line, which was cut off"] if owner is Journal else [])
    depthcut.prune(str(llama), output=tmp_path / "undisturbed", **OPTIONS)
    assert plan_of(output) == plan_of(tmp_path / "undisturbed")
    assert {file.name for file in output.iterdir()} == {file.name for file in (tmp_path / "undisturbed").iterdir()}


def test_a_full_disk_leaves_nothing_of_what_cannot_be_resumed(llama, disk, monkeypatch, command):
    fill_before(monkeypatch, disk, plan, "static_scores")
    told = command("score", llama, "-o", disk.folder / "out", "--calibration-length", "16", code=2)
    assert len(told) == 1 and told[0].endswith("make room, then give the command again")
    assert {file.name for file in disk.folder.iterdir()} <= {"filler"}


def test_another_error_of_the_system_is_no_full_disk():
    assert not is_out_of_space(PermissionError(13, "Permission denied"))


# Weights


@pytest.fixture
def shards(tmp_path):
    """A model in several files."""
    folder = tmp_path / "model"
    tiny.save(folder)
    tiny.model(vocab_size=tiny.BYTE_VOCABULARY).save_pretrained(folder, max_shard_size="60KB")
    (folder / "model.safetensors").unlink()
    return folder


def test_a_missing_shard_is_named_before_weights_load(shards, tmp_path, command):
    missing = sorted(shards.glob("*.safetensors"))[1]
    missing.unlink()
    told = command("prune", shards, "-o", tmp_path / "out", *words(OPTIONS), code=2)
    assert told == [
        f"depthcut: {shards} lacks {missing.name}, which model.safetensors.index.json names; download the model again"
    ]


@pytest.mark.parametrize("kept", [0, 7, -1])
def test_a_shard_that_was_cut_off_is_named(shards, tmp_path, command, kept):
    damaged = sorted(shards.glob("*.safetensors"))[1]
    damaged.write_bytes(damaged.read_bytes()[:kept])
    told = command("prune", shards, "-o", tmp_path / "out", *words(OPTIONS), code=2)
    assert len(told) == 1 and f"{damaged} is damaged" in told[0]
    assert not list(tmp_path.glob("*out*"))


def test_an_index_that_is_no_list_is_named(shards):
    (shards / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(InputError, match=r"index\.json is no list of shards"):
        resolve(str(shards))


@contextmanager
def as_nobody():
    """Without the superuser's rights, whom no mode stops."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_shard_without_permission_is_named(shards):
    with tempfile.TemporaryDirectory(dir="/tmp") as scratch:
        Path(scratch).chmod(0o755)
        folder = shutil.copytree(shards, Path(scratch) / "model")
        closed = sorted(folder.glob("*.safetensors"))[0]
        closed.chmod(0)
        with as_nobody(), pytest.raises(InputError, match="cannot be read: Permission denied; see to") as refused:
            resolve(str(folder))
        assert str(closed) in str(refused.value)


# Numbers


@pytest.fixture
def breaks_without_2_ffn():
    """A stream whose block 4 gives NaN unless 2.ffn has left its mark."""
    model = tiny.model()
    blocks = model.model.layers

    def mark(_, __, output):
        output = output.clone()
        output[..., 0] += 1e4
        return output

    def look(_, args):
        return (args[0] if bool((args[0][..., 0] > 1e3).all()) else torch.full_like(args[0], torch.nan), *args[1:])

    blocks[2].mlp.register_forward_hook(mark)
    blocks[4].register_forward_pre_hook(look)
    return DecoderStream(model, find_architecture(model.config))


@pytest.mark.parametrize("objective", ["kl", "loss"])
def test_a_value_that_is_not_finite_says_where_it_begins(breaks_without_2_ffn, objective):
    ablation = Ablation(breaks_without_2_ffn, tiny.samples(), objective)
    assert ablation([Unit(1, "ffn")]) >= 0
    with pytest.raises(InputError, match=r"activations at 4\.attn are not finite without 2\.ffn .*--dtype float32"):
        ablation([Unit(2, "ffn")])


@pytest.mark.parametrize("strategy", ["exhaustive", "lazy"])
def test_nan_wins_no_search(breaks_without_2_ffn, strategy):
    stream = breaks_without_2_ffn
    problem = Problem(
        architecture=stream.architecture,
        num_blocks=tiny.NUM_BLOCKS,
        sizes=measure_sizes(stream.model, stream.architecture),
        unit="sublayer",
        budget=Budget("count", 2),
        ablation=Ablation(stream, tiny.samples(), "kl"),
    )
    with pytest.raises(InputError, match="are not finite without"):
        Greedy(strategy=strategy).path(problem)


# Memory


class Short:
    """Has a model's block fail for want of memory where it is given more than some sequences."""

    def __init__(self, model, most, error):
        self.calls = []
        block = model.model.layers[3].mlp

        def refuse(_, args):
            self.calls.append(len(args[0]))
            if len(args[0]) > most:
                raise error

        block.register_forward_pre_hook(refuse)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("pads", [False, True])
def test_a_batch_too_large_is_run_in_halves(capsys, error, pads):
    samples = tiny.samples(8, 12)
    if pads:
        samples.attention_mask[1, 7:] = 0
    model, plain = tiny.model(), tiny.model()
    architecture = find_architecture(model.config)
    removed = frozenset({Unit(1, "ffn"), Unit(4, "attn")})
    short = Short(model, 2, error)
    ablation = Ablation(DecoderStream(model, architecture), samples, "kl", batch_size=8)
    value = ablation(removed)
    assert max(short.calls) == 8 and short.calls.count(8) == 1 and set(short.calls[-4:]) == {2}
    assert capsys.readouterr().err == "no memory for 8 sequences at a time: they are run in parts\n"
    whole = Ablation(DecoderStream(plain, architecture), samples, "kl", batch_size=8)
    assert value == pytest.approx(whole(removed), abs=tiny.ROUNDING)
    # Cost is counted as if nothing had happened.
    assert ablation.stream.unit_evaluations == whole.stream.unit_evaluations


def test_scores_are_the_same_from_parts_of_a_batch():
    model, plain = tiny.model(), tiny.model()
    architecture = find_architecture(model.config)
    Short(model, 1, MemoryError())
    parts, _ = static_scores(DecoderStream(model, architecture), tiny.samples(4), batch_size=4)
    whole, _ = static_scores(DecoderStream(plain, architecture), tiny.samples(4), batch_size=4)
    for found, expected in zip(parts, whole, strict=True):
        assert found.values == pytest.approx(expected.values, abs=tiny.ROUNDING)


def test_too_little_memory_for_one_sequence_says_what_to_lower(llama, tmp_path, monkeypatch, command):
    def run(*_):
        raise MemoryError

    given = ["prune", llama, "-o", tmp_path / "out", *words(OPTIONS)]
    with monkeypatch.context() as patch:
        patch.setattr(BlockCaller, "around", run)
        told = command(*given, code=2)
    assert "there is no memory for one sequence of 16 tokens" in told[-1] and "--memory-budget" in told[-1]
    command(*given, *(["--resume"] if (tmp_path / ".out.unfinished").exists() else []), code=0)


def test_a_search_that_ran_out_of_memory_goes_on(llama, tmp_path, monkeypatch, command):
    calls = 0
    real = ComparedBatch.compare

    def compare(*args):
        nonlocal calls
        calls += 1
        if calls == 9:
            raise MemoryError
        return real(*args)

    given = ["prune", llama, "-o", tmp_path / "out", *words(OPTIONS)]
    with monkeypatch.context() as patch:
        patch.setattr(ComparedBatch, "compare", compare)
        told = command(*given, code=2)
    assert "there is no memory left" in told[-1] and "with --resume goes on" in told[-1]
    assert len((tmp_path / ".out.unfinished" / "journal.jsonl").read_text().splitlines()) == 9
    command(*given, "--resume", code=0)


def test_the_real_allocator_is_understood():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(ResourceError):
        raise ResourceError("is an input error that keeps what was found")


# Signals

# A job in the background of a shell inherits that it ignores SIGINT.
HOLDS = """
import signal

signal.signal(signal.SIGINT, signal.default_int_handler)

import torch
from depthcut import cli
from depthcut.process.journal import Journal

add, written = Journal.add, []

def hold(journal, line):
    add(journal, line)
    written.append(line)
    while len(written) > 25:
        torch.ones(64, 64) @ torch.ones(64, 64)

Journal.add = hold
cli.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_with_one_line_and_the_run_goes_on(llama, tmp_path, number, code):
    options = OPTIONS | {"calibration_samples": 48, "calibration_length": 64, "method": "greedy,strategy=exhaustive"}
    output = tmp_path / "out"
    # It computes on and on until the signal, so that this comes in the middle on a machine of any speed.
    script = tmp_path / "holds.py"
    script.write_text(HOLDS)
    given = [sys.executable, str(script), "prune", str(llama), "-o", str(output), *words(options)]
    process = subprocess.Popen(given, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    journal = tmp_path / ".out.unfinished" / "journal.jsonl"
    while process.poll() is None and not (journal.is_file() and journal.read_text().count("\n") > 20):
        time.sleep(0.01)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == code, told
    assert [line for line in told.splitlines() if not PROGRESS.match(line)] == [
        "depthcut: interrupted; the same command with --resume goes on"
    ]
    assert not output.exists()
    kept = journal.read_text().count("\n")
    depthcut.prune(str(llama), output=output, resume=True, **options)
    assert (output / "journal.jsonl").read_text().count("\n") > kept
    depthcut.prune(str(llama), output=tmp_path / "undisturbed", **options)
    assert plan_of(output) == plan_of(tmp_path / "undisturbed")


# Journals


def test_a_journal_of_other_settings_is_refused(tmp_path):
    Journal(tmp_path / "journal.jsonl", {"objective": "kl"}).add({"value": 1})
    with pytest.raises(InputError, match="is of another model, text or objective; give the settings it was begun with"):
        Journal(tmp_path / "journal.jsonl", {"objective": "js"})


def test_a_journal_damaged_in_its_middle_is_refused_and_kept(tmp_path):
    file = tmp_path / "journal.jsonl"
    journal = Journal(file, {})
    for value in range(3):
        journal.add({"value": value})
    damaged = file.read_text().replace('{"value": 1}', '{"val')
    file.write_text(damaged)
    with pytest.raises(InputError, match=r"line 3 of .* is damaged; --overwrite begins anew"):
        Journal(file, {})
    assert file.read_text() == damaged
