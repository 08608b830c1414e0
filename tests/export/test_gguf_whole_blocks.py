"""Blocks leave a GGUF of any architecture: tensors byte for byte, and llama.cpp computes what the pruned model does."""

import json
import struct

import gguf_layouts
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType

import tiny
from depthcut.export.gguf import engine, verify
from depthcut.export.gguf.copy import plan_copy
from depthcut.gguf.container import GgufFile, Tensor, Value, read_file, read_model, write_file
from depthcut.gguf.imatrix import cut_imatrix
from depthcut.model.architectures import find_architecture
from depthcut.results import Measurement, read_list
from depthcut.run.apply_gguf import apply_to_gguf
from depthcut.surgery import apply
from depthcut.types import InputError, Plan, Unit

TOKENS = tiny.samples(num_samples=1, length=12).input_ids[0].tolist()

UINT = GGUFValueType.UINT32


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """`dense(architecture)`: a random model, and its file."""
    made = {}

    def get(architecture):
        if architecture not in made:
            model = gguf_layouts.model(architecture)
            path = tmp_path_factory.mktemp(architecture) / "model.gguf"
            made[architecture] = model, gguf_layouts.write(model, architecture, path)
        return made[architecture]

    return get


def units(*layers):
    return [Unit(layer, kind) for layer in layers for kind in ("attn", "ffn")]


def contents(file):
    return {name: (t.dims, t.type, b"".join(file.pieces(t))) for name, t in file.tensors.items()}


@pytest.mark.parametrize(
    ("architecture", "removed"),
    [
        ("qwen3", (0, 4)),
        ("qwen3moe", (1, 5)),
        ("phi3", (2,)),
        ("gemma2", (2, 3)),
        # Sliding, sliding, sliding, full is left: another number than the architecture's, which the file has to say.
        ("gemma2", (1, 3)),
        ("gpt-oss", (0, 1)),
        ("gpt-oss", (1, 3)),
    ],
)
@pytest.mark.engine
def test_llama_cpp_computes_the_pruned_model(dense, architecture, removed, tmp_path):
    model, path = dense(architecture)
    source = read_file(path)
    copy = plan_copy(source, units(*removed))
    copy.write(tmp_path / "cut.gguf")
    written = read_file(tmp_path / "cut.gguf")
    blocks = [layer for layer in range(tiny.NUM_BLOCKS) if layer not in removed]
    before, after = contents(source), contents(written)
    assert written.get(f"{architecture}.block_count") == len(blocks)
    for name, content in after.items():
        old = f"blk.{blocks[int(name.split('.')[1])]}.{name.split('.', 2)[2]}" if name.startswith("blk.") else name
        assert content == before[old], name
    gone = [name for name in before if name.startswith(tuple(f"blk.{layer}." for layer in removed))]
    assert len(after) == len(before) - len(gone)
    if not engine.installed():
        pytest.skip("needs pip install depthcut[llamacpp]")
    answer = engine.ask(tmp_path / "cut.gguf", text="", length=len(TOKENS), tokens=TOKENS, prompt=TOKENS, num_new=2)
    pruned = apply(model, find_architecture(model.config), units(*removed))
    in_engine, in_memory = verify.mean_nll(pruned, TOKENS, answer.log_probs)
    assert in_engine == pytest.approx(in_memory, rel=1e-3)
    assert abs(in_engine - verify.mean_nll(model, TOKENS, answer.log_probs)[1]) > 2e-3 * in_memory


def fake(architecture, num_blocks=8, **keys):
    """A file that holds nothing but metadata and a number for each block."""
    values = {"general.architecture": Value.of(GGUFValueType.STRING, architecture)}
    for key, value in ({"block_count": num_blocks} | keys).items():
        name = f"{architecture}.{key.replace('__', '.')}"
        values[name] = Value.array(UINT, value) if isinstance(value, list) else Value.of(UINT, value)
    return GgufFile(None, values, {})


def cut(file, *removed):
    copy = plan_copy(file, [Unit(layer, "block") for layer in removed])
    prefix = f"{file.get('general.architecture')}."
    return {key.removeprefix(prefix): value.read() for key, value in copy.metadata.items() if key.startswith(prefix)}


def test_metadata_is_cut_with_the_blocks():
    file = fake(
        "kimi-linear",
        attention__head_count_kv=[0, 1, 2, 3, 4, 5, 6, 7],
        rope__dimension_sections=[1, 2, 3, 4],
        leading_dense_block_count=3,
    )
    assert cut(file, 1, 6) == {
        "block_count": 6,
        "attention.head_count_kv": [0, 2, 3, 4, 5, 7],
        "rope.dimension_sections": [1, 2, 3, 4],
        "leading_dense_block_count": 2,
    }


def test_blocks_that_predict_further_tokens_stay_and_are_counted_anew():
    file = fake("step35", num_blocks=6, nextn_predict_layers=1, attention__sliding_window_pattern=[1, 0, 1, 1, 0])
    found = cut(file, 0, 3)
    assert (found["block_count"], found["attention.sliding_window_pattern"]) == (4, [0, 1, 0])
    with pytest.raises(InputError, match="block 5 is none of the model's 5 blocks"):
        cut(file, 5)


@pytest.mark.parametrize(
    ("file", "removed", "words"),
    [
        (
            fake("gemma2"),
            (0,),
            "gemma2 takes every 2th block, counted anew, for one of the attentions that do not slide",
        ),
        (fake("exaone4", attention__sliding_window=64), (1,), "exaone4 takes every 4th block"),
        (fake("smollm3"), (0,), "smollm3 takes every 4th block, .* the blocks that do not rotate"),
        (fake("qwen3next", full_attention_interval=4), (2,), "every 4th block, .* the blocks with full attention"),
        (fake("ernie4_5-moe", interleave_moe_layer_step=2), (2,), "every 2th block, .* the blocks with experts"),
        (fake("deepseek2", num_blocks=28), (3,), "knows deepseek2 models with queries that are not of low rank"),
        (fake("gemma2", num_blocks=46), (0, 1), "would take 44 blocks for another kind than 46"),
        (fake("command-r", num_blocks=64), (0,), "would take 63 blocks for another kind than 64"),
        (fake("minicpm3"), (0,), "no block can leave a GGUF of architecture minicpm3: what its blocks add is scaled"),
        (fake("gemma3n"), (0,), "no block can leave a GGUF of architecture gemma3n"),
        (fake("rwkv7"), (0,), "block 0 cannot leave a GGUF of architecture rwkv7"),
        (fake("plm"), tuple(range(8)), "nothing would remain"),
    ],
)
def test_what_llama_cpp_would_take_for_another_model_is_refused(file, removed, words):
    with pytest.raises(InputError, match=words):
        cut(file, *removed)


@pytest.mark.parametrize(
    ("file", "removed"),
    [
        (fake("exaone4"), (1,)),
        (fake("exaone4", attention__sliding_window=64), (0, 1, 2, 3)),
        (fake("exaone4", attention__sliding_window=64, attention__sliding_window_pattern=[1] * 8), (1,)),
        (fake("smollm3"), (4, 5, 6, 7)),
        (fake("rwkv7"), (3,)),
        (fake("command-r", num_blocks=66), (0,)),
    ],
)
def test_what_means_the_same_is_done(file, removed):
    assert cut(file, *removed)["block_count"] == file.get(f"{file.get('general.architecture')}.block_count") - len(
        removed
    )


def test_parts_of_blocks_are_refused_by_name():
    with pytest.raises(
        InputError, match="architecture qwen3 are pruned by whole blocks, and of block 2 only attn would"
    ):
        plan_copy(fake("qwen3"), [Unit(2, "attn")])


def test_a_split_file_goes_in_and_one_comes_out(dense, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "installed", lambda: False)
    source = read_file(dense("qwen3")[1])
    tensors = [Tensor(name, t.dims, t.type, lambda t=t: source.pieces(t)) for name, t in sorted(source.tensors.items())]
    count = len(tensors)
    for number, share in enumerate((tensors[:9], tensors[9:30], tensors[30:])):
        split = {
            "split.no": Value.of(GGUFValueType.UINT16, number),
            "split.count": Value.of(GGUFValueType.UINT16, 3),
            "split.tensors.count": Value.of(GGUFValueType.INT32, count),
        }
        keys = (source.metadata if number == 0 else {}) | split
        write_file(tmp_path / f"big-{number + 1:05}-of-00003.gguf", keys, share)
    first = tmp_path / "big-00001-of-00003.gguf"
    (tmp_path / "plan.json").write_text(
        json.dumps({"steps": [{"remove": ["1.attn", "1.ffn"]}, {"remove": ["4.block"]}]})
    )
    written, _ = apply_to_gguf(str(first), tmp_path / "plan.json", tmp_path / "out")
    expected = plan_copy(source, units(1, 4))
    expected.write(tmp_path / "whole.gguf")
    found, whole = read_file(written), read_file(tmp_path / "whole.gguf")
    assert contents(found) == contents(whole)
    assert found.metadata == whole.metadata
    plan = Plan.from_file(tmp_path / "out" / "plan.json")
    assert (plan.method, plan.unit, plan.model.model_type) == ("by hand", "block", "qwen3")
    sizes = {(m.name, m.model): m.value for m in read_list(Measurement, tmp_path / "out" / "results.json")}
    parts = [file.stat().st_size for file in tmp_path.glob("big-*.gguf")]
    assert sizes["bytes_on_disk", "dense"] == sum(parts)
    (tmp_path / "big-00003-of-00003.gguf").unlink()
    with pytest.raises(InputError, match="first of 3 parts, and .*big-00003-of-00003.gguf is missing"):
        read_model(first)


def dat(entries):
    """The older format: name, calls and values of every entry, then what llama.cpp writes behind them."""
    body = b"".join(
        struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 7, len(values)) + np.float32(values).tobytes()
        for name, values in entries.items()
    )
    return struct.pack("<i", len(entries)) + body + struct.pack("<ii", 5, 3) + b"abc"


ORIGINS = {"blk.0.ffn_up.weight": "blk.0.ffn_up.weight", "blk.1.ffn_up.weight": "blk.2.ffn_up.weight"}


class TestImatrix:
    def test_the_older_format(self, tmp_path):
        entries = {f"blk.{layer}.ffn_up.weight": [layer, 1.5, 2] for layer in range(4)}
        (tmp_path / "m.dat").write_bytes(dat(entries))
        assert cut_imatrix(tmp_path / "m.dat", tmp_path / "cut.dat", ORIGINS) == 2
        kept = {new: entries[old] for new, old in ORIGINS.items()}
        assert (tmp_path / "cut.dat").read_bytes() == dat(kept)

    def test_the_format_of_today_beside_the_written_file(self, dense, tmp_path, monkeypatch):
        monkeypatch.setattr(engine, "installed", lambda: False)
        path = dense("qwen3")[1]
        tensors = []
        for layer in range(tiny.NUM_BLOCKS):
            for suffix, values in (("in_sum2", np.full(4, layer)), ("counts", np.full(1, 9))):
                content = values.astype(np.float32).tobytes()
                name = f"blk.{layer}.attn_q.weight.{suffix}"
                tensors.append(Tensor(name, (len(values),), GGMLQuantizationType.F32, lambda c=content: [c]))
        keys = {
            "general.type": Value.of(GGUFValueType.STRING, "imatrix"),
            "imatrix.chunk_count": Value.of(UINT, 3),
        }
        write_file(tmp_path / "matrix.gguf", keys, tensors)
        (tmp_path / "plan.json").write_text(json.dumps({"steps": [{"remove": ["0.attn", "0.ffn"]}]}))
        apply_to_gguf(str(path), tmp_path / "plan.json", tmp_path / "out", imatrix=tmp_path / "matrix.gguf")
        found = read_file(tmp_path / "out" / "matrix.gguf")
        assert found.metadata == read_file(tmp_path / "matrix.gguf").metadata
        sums = {name: np.frombuffer(content, np.float32)[0] for name, (_, _, content) in contents(found).items()}
        assert [sums[f"blk.{layer}.attn_q.weight.in_sum2"] for layer in range(5)] == [1, 2, 3, 4, 5]
        assert len(sums) == 10

    @pytest.mark.parametrize(
        ("content", "words"),
        [(b"\x05\0\0\0\x09", "no importance matrix"), (dat({"blk.9.x": [1]}), "of another model")],
    )
    def test_what_is_none_is_refused(self, content, words, tmp_path):
        (tmp_path / "m.dat").write_bytes(content)
        with pytest.raises(InputError, match=words):
            cut_imatrix(tmp_path / "m.dat", tmp_path / "cut.dat", ORIGINS)
