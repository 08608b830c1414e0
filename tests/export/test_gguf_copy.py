"""A GGUF pruned as it is: kept tensors stay byte for byte, and the metadata follows the blocks."""

import subprocess
import sys

import gguf
import pytest
from gguf import GGUFValueType
from gguf_models import SPECIAL, SUBLAYERS, form

import tiny
from depthcut.export import VerificationError
from depthcut.export.gguf import engine
from depthcut.export.gguf.copy import Copy, plan_copy
from depthcut.gguf.container import Tensor, Value, read_file, write_file
from depthcut.model.architectures import find_architecture
from depthcut.model.files import file_digest
from depthcut.results import Measurement, read_list
from depthcut.run.apply_gguf import apply_to_gguf
from depthcut.surgery import apply
from depthcut.types import InputError, Plan, Provenance, Step, Unit

PAIRS = ("1.ffn", "2.attn", "4.attn", "4.ffn")


@pytest.fixture(autouse=True)
def no_engine(monkeypatch):
    monkeypatch.setattr(engine, "installed", lambda: False)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """`sources(family)`: a dense random model, and its GGUF in Q8_0 with some F16."""
    made = {}

    def get(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            model = tiny.model(family, vocab_size=tiny.BYTE_VOCABULARY, **SPECIAL.get(family, {}))
            form("q8_0").write(model, tiny.tokenizer(), folder)
            made[family] = model, next(folder.glob("*.gguf"))
        return made[family]

    return get


def units(names):
    return [Unit.parse(name) for name in names]


def copied(source, removed, folder):
    copy = plan_copy(read_file(source), units(removed))
    path = folder / "copy.gguf"
    copy.write(path)
    copy.verify(path)
    return copy, path


def contents(path):
    """Every tensor's shape, type and bytes, by the `gguf` package's own reader."""
    return {t.name: (t.shape.tolist(), t.tensor_type, t.data.tobytes()) for t in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize(
    ("family", "removed"),
    [
        ("llama", PAIRS),
        ("llama", SUBLAYERS),
        ("qwen2", PAIRS),
        ("qwen2", SUBLAYERS),
        ("gemma3_text", ("0.ffn", "1.attn", "3.attn", "3.ffn")),
    ],
)
def test_it_is_the_file_that_the_pruned_model_would_give(sources, tmp_path, family, removed):
    dense, source = sources(family)
    _, path = copied(source, removed, tmp_path)
    pruned = apply(dense, find_architecture(dense.config), units(removed))
    (tmp_path / "direct").mkdir()
    form("q8_0").write(pruned, tiny.tokenizer(), tmp_path / "direct")
    direct = next((tmp_path / "direct").glob("*.gguf"))
    assert contents(path) == contents(direct)
    assert read_file(path).metadata == read_file(direct).metadata


def test_kept_tensors_are_the_sources_a_from_one_block_and_f_from_another(sources, tmp_path):
    source = sources("llama")[1]
    _, path = copied(source, PAIRS, tmp_path)
    dense, pruned = contents(source), contents(path)
    # A0 F0 | A1 F2 | A3 F3 | A5 F5
    for block, (attention, ffn) in enumerate([(0, 0), (1, 2), (3, 3), (5, 5)]):
        for part, origin in (("attn_q", attention), ("attn_norm", attention), ("ffn_up", ffn), ("ffn_norm", ffn)):
            assert pruned[f"blk.{block}.{part}.weight"] == dense[f"blk.{origin}.{part}.weight"]
    assert {name for name in pruned if not name.startswith("blk.")} == {
        "token_embd.weight",
        "output_norm.weight",
        "output.weight",
    }


def rewritten(source, path, changes, renamed=()):
    """A copy of a file with other metadata or names of tensors."""
    file = read_file(source)
    names = dict(renamed)
    tensors = [
        Tensor(names.get(t.name, t.name), t.dims, t.type, lambda t=t: file.pieces(t)) for t in file.tensors.values()
    ]
    write_file(path, file.metadata | changes, tensors)
    return path


def test_per_layer_arrays_are_cut_with_the_sublayer_that_reads_them(sources, tmp_path):
    """llama.cpp issue #27976: arrays of the old length make a file that does not load."""
    numbers = GGUFValueType.INT32
    changes = {
        "llama.feed_forward_length": Value.array(numbers, [48, 48, 47, 48, 46, 45]),
        "llama.attention.head_count_kv": Value.array(numbers, [2, 21, 22, 23, 24, 25]),
        "llama.attention.head_count": Value.array(numbers, [4] * 6),
        "llama.rope.dimension_sections": Value.array(numbers, [1, 2, 3, 4]),
    }
    source = rewritten(sources("llama")[1], tmp_path / "arrays.gguf", changes)
    _, path = copied(source, PAIRS, tmp_path)
    file = read_file(path)
    assert file.get("llama.block_count") == 4
    assert file.get("llama.feed_forward_length") == [48, 47, 48, 45]
    assert file.get("llama.attention.head_count_kv") == [2, 21, 23, 25]
    assert file.get("llama.attention.head_count") == [4] * 4
    assert file.get("llama.rope.dimension_sections") == [1, 2, 3, 4]
    lacking = read_file(copied(source, ("1.attn", "2.ffn", "5.attn"), tmp_path)[1])
    # A0 F0 | F1 | A2 | A3 F3 | A4 F4 | F5
    assert lacking.get("deci.attention.head_count") == [4, 0, 4, 4, 4, 0]
    assert lacking.get("deci.attention.head_count_kv") == [2, 0, 22, 23, 24, 0]
    assert lacking.get("deci.feed_forward_length") == [48, 48, 32, 48, 46, 45]


def test_gemmas_rhythm_of_windows_is_followed_or_refused(sources, tmp_path):
    source = sources("gemma3_text")[1]
    file = read_file(copied(source, ("0.attn", "0.ffn", "4.attn", "4.ffn"), tmp_path)[1])
    assert file.get("gemma3.attention.sliding_window_pattern") == 2
    with pytest.raises(InputError, match="the kept attentions are sfssf "):
        plan_copy(read_file(source), units(("0.attn", "0.ffn")))
    # Where the file says nothing llama.cpp takes 6: block 5 alone is full.
    file = read_file(source)
    del file.metadata["gemma3.attention.sliding_window_pattern"]
    copy = plan_copy(file, units(("1.attn", "1.ffn")))
    assert copy.metadata["gemma3.attention.sliding_window_pattern"].read() == 5


@pytest.mark.parametrize(
    ("family", "changes", "removed", "words"),
    [
        (
            "llama",
            {"llama.rope.dimension_count": Value.of(GGUFValueType.UINT32, 4)},
            SUBLAYERS,
            "rotates 4 of the 8 numbers of a head, which llama.cpp's deci cannot",
        ),
        (
            "gemma3_text",
            {"gemma3.block_count": Value.of(GGUFValueType.UINT32, 62)},
            ("1.attn", "1.ffn"),
            "knows Gemma 3 27B by its 62 blocks",
        ),
        ("gemma3_text", {}, ("1.attn",), "no architecture for gemma3 blocks that lack sublayers; remove blocks"),
        ("llama", {}, ("6.attn",), "6.attn is no unit of this model: it has 0.attn to 5.ffn"),
        ("llama", {}, tuple(f"{i}.attn" for i in range(6)), "no attention would remain"),
    ],
)
def test_what_cannot_be_pruned_as_it_is_is_refused_before_anything_is_written(
    sources, tmp_path, family, changes, removed, words
):
    source = rewritten(sources(family)[1], tmp_path / "changed.gguf", changes)
    with pytest.raises(InputError, match=words):
        plan_copy(read_file(source), units(removed))


def test_a_tensor_of_no_known_sublayer_is_refused(sources, tmp_path):
    source = rewritten(
        sources("llama")[1], tmp_path / "odd.gguf", {}, {"blk.2.ffn_up.weight": "blk.2.ffn_up_exps.weight"}.items()
    )
    with pytest.raises(InputError, match=r"tensor blk\.2\.ffn_up_exps\.weight, which belongs to no known sublayer"):
        plan_copy(read_file(source), units(PAIRS))


class TestDamagedFiles:
    def write(self, path, content):
        path.write_bytes(content)
        return path

    @pytest.mark.parametrize(("share", "words"), [(0.001, "damaged"), (0.05, "damaged"), (0.6, "ends before the te")])
    def test_a_file_that_ends_early(self, sources, tmp_path, share, words):
        whole = sources("llama")[1].read_bytes()
        with pytest.raises(InputError, match=words):
            read_file(self.write(tmp_path / "short.gguf", whole[: int(len(whole) * share)]))

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", "damaged"),
            (b"ZIP!" + bytes(40), "no GGUF file"),
            (b"GGUF" + (1).to_bytes(4, "little") + bytes(40), "version 1 or big-endian"),
            (b"GGUF" + (3).to_bytes(4, "big") + bytes(40), "version 50331648 or big-endian"),
            (b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 16, "damaged"),
        ],
    )
    def test_a_file_that_begins_otherwise(self, tmp_path, content, words):
        with pytest.raises(InputError, match=words):
            read_file(self.write(tmp_path / "odd.gguf", content))


class TestVerification:
    def test_a_changed_byte_is_noticed(self, sources, tmp_path):
        copy, path = copied(sources("llama")[1], PAIRS, tmp_path)
        tensor = read_file(path).tensors["blk.2.ffn_down.weight"]
        with path.open("r+b") as file:
            file.seek(tensor.start + 33)
            byte = file.read(1)[0]
            file.seek(tensor.start + 33)
            file.write(bytes([byte ^ 1]))
        with pytest.raises(VerificationError, match=r"blk\.2\.ffn_down\.weight is not the source's blk\.3\.ffn_down"):
            copy.verify(path)

    def test_other_metadata_or_tensors_are_noticed(self, sources, tmp_path):
        copy, path = copied(sources("llama")[1], PAIRS, tmp_path)
        other = {"llama.block_count": Value.of(GGUFValueType.UINT32, 5)}
        with pytest.raises(VerificationError, match="metadata"):
            copy.verify(rewritten(path, tmp_path / "other.gguf", other))
        with pytest.raises(VerificationError, match="lacks or adds blk.1.attn_k.weight"):
            copy.verify(rewritten(path, tmp_path / "named.gguf", {}, [("blk.1.attn_k.weight", "blk.1.other.weight")]))


def make_plan(source, *steps):
    provenance = Provenance(
        source=str(source),
        format="gguf",
        digest=file_digest([source], None),
        model_type="llama",
        num_blocks=tiny.NUM_BLOCKS,
        dtype="float32",
    )
    return Plan(
        model=provenance,
        calibration=None,
        method="by hand",
        unit="sublayer",
        budget="steps",
        steps=tuple(Step(remove=tuple(units(step.split("+"))), applied=True) for step in steps),
    )


class TestApply:
    @pytest.fixture
    def plan_file(self, sources, tmp_path):
        file = tmp_path / "plan.json"
        make_plan(sources("llama")[1], "1.ffn+2.attn", "4.attn+4.ffn", "0.attn").write(file)
        return file

    def test_the_command_writes_the_file_its_plan_and_its_sizes(self, sources, tmp_path, plan_file, outcome):
        source = sources("llama")[1]
        code, printed = outcome("apply", source, plan_file, "--to", "gguf", "--steps", 2, "-o", tmp_path / "out")
        assert code == 0, printed.err
        assert "kept tensors equal the source's byte for byte" in printed.out
        written = tmp_path / "out" / "model.Q8_0.gguf"
        assert str(written) in printed.out
        assert read_file(written).get("llama.block_count") == 4
        plan = Plan.from_file(tmp_path / "out" / "plan.json")
        assert [step.applied for step in plan.steps] == [True, True, False]
        sizes = {(m.name, m.model): m.value for m in read_list(Measurement, tmp_path / "out" / "results.json")}
        assert (sizes["blocks", "dense"], sizes["blocks", "pruned"]) == (6, 4)
        assert sizes["bytes_on_disk", "pruned"] == written.stat().st_size
        dense = sources("llama")[0].num_parameters()
        assert sizes["parameters", "dense"] == dense
        per_block = sum(p.numel() for p in sources("llama")[0].model.layers[0].parameters())
        assert sizes["parameters", "pruned"] == dense - 2 * per_block

    def test_stubs_count_as_no_parameters(self, sources, tmp_path, plan_file):
        _, sizes = apply_to_gguf(str(sources("llama")[1]), plan_file, tmp_path / "out")
        found = {m.model: m.value for m in sizes if m.name == "parameters"}
        block = sources("llama")[0].model.layers[0]
        attention = [*block.self_attn.parameters(), *block.input_layernorm.parameters()]
        # Two whole blocks' worth of pairs, and attention 0.
        removed = sum(p.numel() for p in [*block.parameters(), *block.parameters(), *attention])
        assert found["dense"] - found["pruned"] == removed

    def test_a_plan_of_another_model_is_refused(self, sources, tmp_path, plan_file):
        with pytest.raises(InputError, match=r"the plan was made for .*llama.*, not for .*qwen2"):
            apply_to_gguf(str(sources("qwen2")[1]), plan_file, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_too_many_steps_are_refused(self, sources, tmp_path, plan_file):
        with pytest.raises(InputError, match="the plan has 3 steps, so 4 of them cannot be applied"):
            apply_to_gguf(str(sources("llama")[1]), plan_file, tmp_path / "out", num_steps=4)

    def test_a_directory_is_no_gguf(self, tmp_path, plan_file, outcome):
        code, printed = outcome("apply", tmp_path, plan_file, "--to", "gguf", "-o", tmp_path / "out")
        assert code == 2
        assert "--to gguf prunes a .gguf file as it is" in printed.err
        assert "depthcut export OUT --to gguf" in printed.err

    def test_options_that_would_do_nothing_are_refused(self, sources, tmp_path, plan_file, outcome):
        words = ["apply", sources("llama")[1], plan_file, "--to", "gguf", "-o", tmp_path / "out", "--device", "cpu"]
        code, printed = outcome(*words)
        assert (code, "leave --device out" in printed.err) == (2, True)

    def test_another_form_is_refused(self, sources, tmp_path, plan_file, outcome):
        code, printed = outcome("apply", sources("llama")[1], plan_file, "--to", "ggml", "-o", tmp_path / "out")
        assert code == 2
        assert "unknown format to apply a plan to 'ggml'; did you mean gguf" in printed.err

    def test_a_failed_verification_leaves_no_output(self, sources, tmp_path, plan_file, outcome, monkeypatch):
        def fail(*_):
            raise VerificationError("the written tensor is another")

        monkeypatch.setattr(Copy, "verify", fail)
        code, printed = outcome("apply", sources("llama")[1], plan_file, "--to", "gguf", "-o", tmp_path / "out")
        assert (code, "the output was not written" in printed.err) == (1, True)
        assert not (tmp_path / "out").exists()

    def test_it_needs_neither_torch_nor_transformers(self, sources, tmp_path, plan_file):
        words = ["depthcut", "apply", sources("llama")[1], plan_file, "--to", "gguf", "-o", tmp_path / "out"]
        script = (
            f"import sys; sys.argv = {[str(word) for word in words]!r}\n"
            "import depthcut.cli\n"
            "try: depthcut.cli.main()\n"
            "except SystemExit: print([name for name in ('torch', 'transformers') if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.strip().splitlines()[-1] == "[]"
        assert (tmp_path / "out" / "model.Q8_0.gguf").is_file()


def test_file_and_reader_agree_with_the_gguf_package(sources):
    """Our reader against the package's: every key, every tensor's place."""
    source = sources("qwen2")[1]
    ours, theirs = read_file(source), gguf.GGUFReader(source)
    for key, value in ours.metadata.items():
        assert value.read() == theirs.fields[key].contents()
    assert [(t.name, list(t.dims), t.type, t.start, t.num_bytes) for t in ours.tensors.values()] == [
        (t.name, t.shape.tolist(), t.tensor_type, t.data_offset, t.n_bytes) for t in theirs.tensors
    ]
