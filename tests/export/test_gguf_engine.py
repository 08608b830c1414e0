"""llama.cpp itself runs what is written, and notices every way in which it could be wrong."""

import importlib.util
import subprocess
import sys

import pytest
import torch
from gguf import GGUFValueType
from gguf_models import LLAMA3, REGULAR, WHOLE, form, make

import tiny
from depthcut.export import VerificationError
from depthcut.export.gguf import convert, engine, layout, tokenizer, verify, write
from depthcut.export.gguf.copy import plan_copy
from depthcut.gguf.container import Value, read_file
from depthcut.model.files import PACKAGED_MODELS, file_digest, find_gguf
from depthcut.model.load import resolve
from depthcut.surgery import apply
from depthcut.types import Plan, Provenance, Step, Unit

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not engine.installed(), reason="needs pip install depthcut[llamacpp]"),
]

PAIRS = "1.ffn 2.attn"
LACKING = "0.attn 2.ffn 3.attn 5.ffn"
"""The first attention and the last feed-forward part among what is missing."""

IDS = tiny.samples(num_samples=1).input_ids


def units(names):
    return [Unit.parse(name) for name in names.split()]


def write_and_verify(model, folder, tensor_type=None, tokens=None, ids=IDS):
    exporter = form(tensor_type)
    exporter.check(model.config)
    exporter.write(model, tokens or tiny.tokenizer(), folder)
    exporter.verify(folder, model, ids)
    return next(folder.glob("*.gguf"))


@pytest.mark.parametrize(
    ("family", "removed", "changes"),
    [
        ("llama", PAIRS, {"rope_parameters": LLAMA3}),
        ("llama", LACKING, {"rope_parameters": LLAMA3}),
        ("llama", PAIRS, {"attention_bias": True, "mlp_bias": True}),
        ("llama", LACKING, {"attention_bias": True, "mlp_bias": True}),
        ("llama", LACKING, {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
        ("llama", LACKING, {"head_dim": 16, "tie_word_embeddings": True}),
        ("mistral", PAIRS, {}),
        ("mistral", LACKING, {}),
        ("qwen2", PAIRS, {}),
        ("qwen3", PAIRS, {}),
        ("phi3", PAIRS, {}),
        # Sliding, sliding, sliding, full: not the rhythm that llama.cpp takes where the file says nothing.
        ("gemma2", "1.attn 1.ffn 2.ffn 3.attn", {}),
        ("qwen2", LACKING, {}),
        ("qwen2", "5.attn", WHOLE | {"tie_word_embeddings": True}),
        # The scored text is longer than the window of 4 tokens.
        ("gemma3_text", "0.ffn 1.attn 3.attn 3.ffn", REGULAR),
        ("gemma3_text", "", REGULAR | {"layer_types": ["sliding_attention"] * tiny.NUM_BLOCKS}),
    ],
)
def test_it_scores_and_continues_text_as_the_model_does(tmp_path, family, removed, changes):
    write_and_verify(make(family, removed.split(), **changes), tmp_path)


@pytest.mark.parametrize("tensor_type", ["f16", "bf16", "q8_0"])
def test_other_types_come_as_near_as_they_can(tmp_path, tensor_type):
    write_and_verify(make(removed=LACKING.split()), tmp_path, tensor_type)


def test_a_model_in_half_precision(tmp_path):
    write_and_verify(make(removed=PAIRS.split()).to(torch.bfloat16), tmp_path)


class TestTraps:
    """Each of the ways in which a file could be wrong, with our own reader switched off: the engine notices alone."""

    @pytest.fixture(autouse=True)
    def engine_alone(self, monkeypatch):
        monkeypatch.setattr(verify, "_compare_metadata", lambda *_: None)
        monkeypatch.setattr(verify, "_compare_tensors", lambda *_: None)

    def expect(self, words, model, folder):
        with pytest.raises(VerificationError, match=words):
            write_and_verify(model, folder)

    def test_a_feed_forward_length_of_0_passes_over_the_block(self, tmp_path, monkeypatch):
        monkeypatch.setattr(layout, "STUB_LENGTH", 0)
        monkeypatch.setattr(convert, "deci_stubs", lambda *_: [])
        self.expect("llama.cpp scores a text with", make(removed=["2.ffn"]), tmp_path)

    def test_the_same_in_the_last_block_aborts(self, tmp_path, monkeypatch):
        monkeypatch.setattr(layout, "STUB_LENGTH", 0)
        monkeypatch.setattr(convert, "deci_stubs", lambda *_: [])
        self.expect("llama.cpp does not run the written file", make(removed=["5.ffn"]), tmp_path)

    def test_a_first_block_without_heads_does_not_load(self, tmp_path, monkeypatch):
        arrays = convert.deci_arrays

        def without_heads(packed, heads):
            keys = arrays(packed, heads)
            counts = keys["deci.attention.head_count"].read()
            return keys | {"deci.attention.head_count": Value.array(GGUFValueType.INT32, [0, *counts[1:]])}

        monkeypatch.setattr(convert, "deci_arrays", without_heads)
        self.expect("llama.cpp does not run the written file", make(removed=["0.attn"]), tmp_path)

    def test_arrays_of_the_dense_models_length_do_not_load(self, tmp_path, monkeypatch):
        arrays = convert.deci_arrays

        def longer(packed, heads):
            keys = arrays(packed, heads)
            name = "deci.feed_forward_length"
            return keys | {name: Value.array(GGUFValueType.INT32, [*keys[name].read(), 48])}

        monkeypatch.setattr(convert, "deci_arrays", longer)
        self.expect("wrong array length", make(removed=["2.attn"]), tmp_path)

    @pytest.mark.parametrize(("family", "removed"), [("llama", PAIRS), ("qwen2", LACKING)])
    def test_rows_in_the_other_order(self, tmp_path, monkeypatch, family, removed):
        monkeypatch.setattr(convert, "rotated_order", lambda num_rows, _: list(range(num_rows)))
        self.expect("llama.cpp scores a text with", make(family, removed.split()), tmp_path)

    def test_norms_without_the_one(self, tmp_path, monkeypatch):
        plain = convert.Family("gemma3", convert.GEMMA3_NAMES, by_width=62)
        monkeypatch.setitem(convert.GGUF_FAMILIES, "gemma3_text", plain)
        self.expect(r"llama.cpp (scores a text with|decodes other tokens)", make("gemma3_text"), tmp_path)

    def test_another_rhythm_of_windows(self, tmp_path, monkeypatch):
        monkeypatch.setattr(convert, "window_period", lambda *_: 6)
        self.expect("llama.cpp scores a text with", make("gemma3_text"), tmp_path)

    def test_frequencies_without_their_scaling(self, tmp_path, monkeypatch):
        every = convert.tensors

        def without(*args):
            return [tensor for tensor in every(*args) if tensor.name != "rope_freqs.weight"]

        monkeypatch.setattr(write, "tensors", without)
        self.expect("llama.cpp scores a text with", make(rope_parameters=LLAMA3), tmp_path)

    def test_another_way_of_splitting_text(self, tmp_path, monkeypatch):
        monkeypatch.setattr(tokenizer, "SPLITTERS", dict.fromkeys(tokenizer.SPLITTERS, "qwen2"))
        # With a token of two digits it matters whether digits are split.
        tokens = tiny.tokenizer()
        rules = tokens.backend_tokenizer.to_str().replace('"merges":[]', '"merges":[["1","8"]]')
        rules = rules.replace('"vocab":{', f'"vocab":{{"18":{tiny.BYTE_VOCABULARY},')
        tokens._tokenizer = type(tokens.backend_tokenizer).from_str(rules)
        model = make(vocab_size=tiny.BYTE_VOCABULARY + 1)
        with pytest.raises(VerificationError, match="splits a text into other tokens than the tokenizer does"):
            write_and_verify(model, tmp_path, tokens=tokens)

    def test_other_greedy_tokens(self, tmp_path, monkeypatch):
        answer = engine.ask

        def others(*args, **kwargs):
            given = answer(*args, **kwargs)
            return engine.Answer(given.text_tokens, given.log_probs, [(token + 1) % 200 for token in given.greedy])

        monkeypatch.setattr(engine, "ask", others)
        self.expect("llama.cpp decodes other tokens than the model in memory", make(), tmp_path)


def require(alias):
    if importlib.util.find_spec(PACKAGED_MODELS[alias].module) is None:
        pytest.skip(f"needs {PACKAGED_MODELS[alias].install}")


@pytest.mark.long
class TestSmolLM2:
    @pytest.fixture(scope="class")
    def dense(self):
        require("smollm2")
        source = resolve("smollm2")
        return source, source.load_model("cpu"), source.load_tokenizer()

    @pytest.mark.parametrize(
        ("removed", "architecture", "num_blocks"),
        [
            (" ".join(f"{i}.attn {i}.ffn" for i in (5, 12, 18, 24)), "llama", 26),
            ("2.attn 2.ffn 7.ffn 8.attn 10.ffn 11.attn 15.attn 15.ffn 20.ffn 21.attn 26.attn 26.ffn", "llama", 24),
            (" ".join(f"{i}.attn" for i in (3, 6, 9, 12, 15, 18, 21, 24)), "deci", 30),
            (" ".join(f"{i}.attn" for i in (0, 6, 9, 12, 15, 18, 21, 25)) + " 4.ffn 16.ffn 29.ffn", "deci", 30),
        ],
        ids=["4 blocks", "6 pairs of both kinds", "8 attentions", "8 attentions and 3 ffns, the first and the last"],
    )
    def test_it_scores_within_a_thousandth_and_continues_with_equal_tokens(
        self, dense, tmp_path, removed, architecture, num_blocks
    ):
        source, model, tokens = dense
        pruned = apply(model, source.architecture, units(removed))
        ids = tokens("The keeper of the lighthouse", return_tensors="pt")["input_ids"]
        path = write_and_verify(pruned, tmp_path, tokens=tokens, ids=ids)
        file = read_file(path)
        assert file.get("general.architecture") == architecture
        assert file.get(f"{architecture}.block_count") == num_blocks
        text = "Ships passed the cape at night, and the keeper wrote down the name of each of them in his book."
        scored = tokens(text)["input_ids"]
        answer = engine.ask(path, text="", length=32, tokens=scored, prompt=ids[0].tolist(), num_new=16)
        in_engine, in_memory = verify.mean_nll(pruned, scored, answer.log_probs)
        assert in_engine == pytest.approx(in_memory, rel=1e-3)
        greedy = pruned.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, min_new_tokens=16)
        assert answer.greedy == greedy[0, ids.shape[1] :].tolist()

    @pytest.mark.parametrize(
        ("removed", "architecture"),
        [
            (" ".join(f"{i}.attn+{i}.ffn" for i in (5, 8, 12, 15, 18, 21, 24)) + " 26.ffn+27.attn", "llama"),
            (" ".join(f"{i}.attn" for i in (3, 6, 9, 12, 15, 18, 21, 24)), "deci"),
        ],
        ids=["a quarter of the blocks", "8 attentions"],
    )
    def test_a_quantised_file_is_pruned_in_little_memory(self, tmp_path, removed, architecture):
        require("smollm2")
        source = find_gguf("smollm2")
        provenance = Provenance(
            source="smollm2",
            format="gguf",
            digest=file_digest([source], None),
            model_type="llama",
            num_blocks=30,
            dtype="float32",
        )
        steps = tuple(Step(remove=tuple(units(step.replace("+", " "))), applied=True) for step in removed.split())
        plan = Plan(model=provenance, calibration=None, method="", unit="sublayer", budget="", steps=steps)
        plan.write(tmp_path / "plan.json")
        script = (
            "import resource, subprocess, sys\n"
            "subprocess.run(sys.argv[1:], check=True)\n"
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
        )
        words = [sys.executable, "-m", "depthcut", "apply", "smollm2", tmp_path / "plan.json", "--to", "gguf"]
        words += ["-o", tmp_path / "out"]
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, words)], capture_output=True, text=True, check=True
        )
        # Of the command or of the process in which llama.cpp runs the result, whichever took more.
        peak_bytes = int(done.stdout.strip().splitlines()[-1]) * (1 if sys.platform == "darwin" else 1024)
        assert peak_bytes < 300 * 2**20
        path = tmp_path / "out" / "model.Q4_1.gguf"
        dense, pruned = read_file(source), read_file(path)
        assert pruned.get("general.architecture") == architecture
        copy = plan_copy(dense, plan.removed)
        for name, origin in copy.kept.items():
            assert b"".join(pruned.pieces(pruned.tensors[name])) == b"".join(dense.pieces(origin.tensor)), name
        tokenizer_keys = [key for key in dense.metadata if key.startswith("tokenizer.")]
        assert all(pruned.metadata[key] == dense.metadata[key] for key in tokenizer_keys)


@pytest.mark.long
class TestGemma3:
    def test_pairs_of_both_kinds_leave_an_ordinary_gemma3(self, tmp_path):
        """One sliding attention less before every full one."""
        require("gemma3-270m")
        source = resolve("gemma3-270m", dtype="bfloat16")
        model, tokens = source.load_model("cpu"), source.load_tokenizer()
        pruned = apply(model, source.architecture, units("3.attn 3.ffn 8.ffn 9.attn 15.ffn 16.attn"))
        path = write_and_verify(pruned, tmp_path, tokens=tokens, ids=torch.tensor([[2, 818, 30522, 529]]))
        file = read_file(path)
        assert file.get("gemma3.block_count") == 15
        assert file.get("gemma3.attention.sliding_window_pattern") == 5

    def test_a_quantised_file_is_pruned_as_it_is(self, tmp_path):
        require("gemma3-270m")
        source = find_gguf("gemma3-270m")
        copy = plan_copy(read_file(source), units("3.attn 3.ffn 8.ffn 9.attn 15.ffn 16.attn"))
        copy.write(tmp_path / "model.gguf")
        copy.verify(tmp_path / "model.gguf")
        assert read_file(tmp_path / "model.gguf").get("gemma3.attention.sliding_window_pattern") == 5
