"""Engines are timed in processes of their own; what is asked of them, what is told, and what is refused before."""

import sys

import pytest

import tiny
from depthcut.evaluation import engines
from depthcut.evaluation.engine_worker import TOKENS
from depthcut.evaluation.engines import compare_engine_speed, find_interpreter
from depthcut.evaluation.ideal import work_of
from depthcut.export import EXPORTS
from depthcut.export.hf import write_directory
from depthcut.model.architectures import find_architecture
from depthcut.model.load import resolve
from depthcut.model.units import measure_sizes
from depthcut.surgery import apply
from depthcut.types import InputError, Unit

# Stands for a worker: takes as long as its model's name says, and notes what it was asked.
WORKER = """
import json, sys, pathlib
engine, model, dtype, context, threads = sys.argv[1:]
seconds = float((pathlib.Path(model) / "seconds").read_text())
print(json.dumps({"software": "engine 1", "device": "machine"}), flush=True)
asked = []
for line in sys.stdin:
    asked.append(json.loads(line))
    print(json.dumps([seconds, 2 * seconds]), flush=True)
(pathlib.Path(model) / "asked").write_text(json.dumps([engine, dtype, context, asked]))
print(json.dumps({"peak_memory_bytes": 1000 * seconds}), flush=True)
"""


@pytest.fixture
def directories(tmp_path):
    """A dense and a pruned model; the stand-in takes 3 seconds for the one and 1 for the other."""
    dense = tiny.save(tmp_path / "dense")
    source = resolve(str(dense))
    pruned = apply(source.load_model("cpu"), source.architecture, [Unit(1, "attn"), Unit(1, "ffn"), Unit(4, "attn")])
    (tmp_path / "pruned").mkdir()
    write_directory(pruned, source.load_tokenizer(), tmp_path / "pruned")
    for name, seconds in (("dense", 3), ("pruned", 1)):
        (tmp_path / name / "seconds").write_text(str(seconds))
    return {name: str(tmp_path / name) for name in ("dense", "pruned")}


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    def use(text=WORKER):
        (tmp_path / "worker.py").write_text(text)
        monkeypatch.setattr(engines, "WORKER_SCRIPT", tmp_path / "worker.py")

    use()
    return use


def by_name(found):
    return {(row.name, row.model): row for row in found}


@pytest.mark.usefixtures("stand_in")
def test_what_workers_tell_becomes_measurements(directories, tmp_path):
    found = by_name(compare_engine_speed("transformers", directories, prompt_tokens=20, decode_tokens=4, rounds=3))
    assert found["prompt_tokens_per_second", "pruned"].value == 20
    assert found["decode_tokens_per_second", "dense"].value == pytest.approx(4 / 6)
    assert found["short_decode_speedup", "pruned"].value == 3
    assert found["peak_memory_bytes", "dense"].value == 3000
    assert found["kv_bytes_per_token", "dense"].value == 6 * 128
    assert found["kv_bytes_per_token", "pruned"].value == 4 * 128
    assert found["decode_ideal_speedup", "pruned"].value > 1
    assert {row.software for row in found.values()} == {"engine 1"}
    assert {row.device.split(",")[0] for row in found.values()} == {"machine"}
    assert all(row.data.startswith("transformers, ") for row in found.values())
    assert '["transformers", "float32", "25", [[20, 4], [16, 4]' in (tmp_path / "dense" / "asked").read_text()


def test_a_worker_that_ends_says_why(directories, stand_in):
    stand_in("raise RuntimeError('no room for the model')")
    with pytest.raises(InputError, match=r"transformers does not run .*dense: RuntimeError: no room for the model"):
        compare_engine_speed("transformers", directories)
    stand_in("print('{}', flush=True); input(); raise RuntimeError('out of memory')")
    with pytest.raises(InputError, match=r"transformers does not run .*: RuntimeError: out of memory"):
        compare_engine_speed("transformers", directories)


@pytest.mark.long
def test_transformers_is_timed_in_fresh_processes(directories):
    found = by_name(compare_engine_speed("transformers", directories, prompt_tokens=20, decode_tokens=2, rounds=1))
    for model in directories:
        assert found["prompt_tokens_per_second", model].value > 0
        assert 10**8 < found["peak_memory_bytes", model].value < 10**10
    assert "transformers" in found["prompt_speedup", "pruned"].software


def test_a_nemotron_nas_directory_is_counted_as_its_model(directories, tmp_path):
    model = resolve(directories["pruned"]).load_model("cpu")
    model.config.intermediate_size = 48
    (tmp_path / "nas").mkdir()
    EXPORTS.find("nemotron-nas").make().write(model, tiny.tokenizer(), tmp_path / "nas")
    found = engines._find("vllm", str(tmp_path / "nas"), "auto")
    sizes = measure_sizes(model, find_architecture(model.config))
    assert found.dtype == "float32"
    assert found.work.kv_bytes == work_of(model.config, sizes, 4).kv_bytes
    # FFNs are padded from 48 to 256, which engines compute.
    assert found.work.weight_bytes == work_of(model.config, sizes, 4).weight_bytes + 5 * 3 * 32 * (256 - 48) * 4


def test_prompts_are_of_tokens_that_every_vocabulary_has():
    assert TOKENS <= tiny.VOCABULARY


def test_unknown_or_missing_engines_are_refused(directories, monkeypatch):
    with pytest.raises(InputError, match="unknown engine 'lama.cpp'; did you mean llama.cpp"):
        compare_engine_speed("lama.cpp", directories)
    monkeypatch.delenv("DEPTHCUT_VLLM_PYTHON", raising=False)
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="the engine vllm is not installed; run: .*DEPTHCUT_VLLM_PYTHON"):
        compare_engine_speed("vllm", directories)
    monkeypatch.setenv("DEPTHCUT_VLLM_PYTHON", "/there/python")
    assert find_interpreter("vllm") == "/there/python"


def test_an_engine_gets_only_what_it_reads(directories, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "check_engine", lambda engine: sys.executable)
    with pytest.raises(
        InputError, match=r"llama.cpp runs .gguf files, .*dense is none and holds 0; write one with .*gguf"
    ):
        compare_engine_speed("llama.cpp", directories)
    with pytest.raises(InputError, match="there is no file .*x.gguf"):
        compare_engine_speed("llama.cpp", {"dense": str(tmp_path / "x.gguf")})
    with pytest.raises(
        InputError, match="vllm does not read .*pruned, whose blocks lack .* export .* --to nemotron-nas"
    ):
        compare_engine_speed("vllm", directories)
    with pytest.raises(InputError, match="vllm is timed on model directories, not on smollm2; write one with"):
        compare_engine_speed("vllm", {"dense": "smollm2"})


def test_the_only_gguf_of_a_directory_is_meant(tmp_path):
    file = tmp_path / "model-Q4_1.gguf"
    file.write_bytes(b"GGUF")
    assert engines._gguf_file("llama.cpp", str(tmp_path)) == engines._gguf_file("llama.cpp", str(file)) == file
    (tmp_path / "another.gguf").touch()
    with pytest.raises(InputError, match="is none and holds 2"):
        engines._gguf_file("llama.cpp", str(tmp_path))


@pytest.mark.long
@pytest.mark.real
def test_the_work_of_a_gguf_is_what_is_in_the_file():
    source = resolve("smollm2")
    file = source.folder / source.gguf_file
    found = engines._find("llama.cpp", "smollm2", "auto").work
    model = source.load_model("cpu")
    dense = work_of(model.config, measure_sizes(model, source.architecture), 4)
    assert (found.token_flops, found.attended_flops, found.last_flops) == (
        dense.token_flops,
        dense.attended_flops,
        dense.last_flops,
    )
    # Half-precision cache; everything in the file but metadata is read.
    assert found.kv_bytes == dense.kv_bytes / 2
    assert 0.9 < found.weight_bytes / file.stat().st_size < 1


@pytest.mark.real
@pytest.mark.engine
def test_llama_cpp_is_timed_in_fresh_processes():
    models = dict.fromkeys(("dense", "pruned"), "smollm2")
    found = by_name(compare_engine_speed("llama.cpp", models, prompt_tokens=32, decode_tokens=4, rounds=1))
    assert found["decode_tokens_per_second", "pruned"].value > 1
    assert 10**8 < found["peak_memory_bytes", "dense"].value < 10**9
    assert found["kv_bytes_per_token", "dense"].value == 30 * 2 * 3 * 64 * 2
    assert found["prompt_speedup", "pruned"].software.startswith("xllamacpp ")
