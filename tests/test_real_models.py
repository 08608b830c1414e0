"""Real models from PyPI packages through the whole product."""

import importlib.util
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import depthcut
from depthcut.calibration import Samples
from depthcut.importance.static import static_scores
from depthcut.model.load import PACKAGED_MODELS, resolve
from depthcut.model.stream import DecoderStream
from depthcut.surgery import apply
from depthcut.types import Plan

pytestmark = pytest.mark.real

SHORT = {
    "calibration": "stdlib",
    "calibration_samples": 2,
    "calibration_length": 64,
    "evaluation_samples": 2,
    "evaluation_length": 128,
    "speed": False,
}


def require(alias):
    package = PACKAGED_MODELS[alias]
    if importlib.util.find_spec(package.module) is None:
        pytest.skip(f"needs {package.install}")


def text_samples(tokenizer, num_samples, length):
    text = "The keeper of the lighthouse wrote down every ship that passed, its flag and its hour. " * 40
    ids = tokenizer(text, return_tensors="pt")["input_ids"][:, : num_samples * length].view(num_samples, length)
    return Samples.packed(ids, source="text", detail="", seed=0, digests=frozenset())


@torch.no_grad()
def logits(model, samples):
    return model(input_ids=samples.input_ids, use_cache=False).logits


def generated(model, samples, use_cache):
    ids = samples.input_ids[:1, :16]
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=12,
        min_new_tokens=12,
        do_sample=False,
        use_cache=use_cache,
    )


def require_repaired(result, share_left):
    """That a repair fitted to some text left at most a share of the KL to dense on other text."""
    (record,) = result.repairs
    assert record.kept
    value = {(row.name, row.model): row.value for row in result.measurements}
    assert value["kl_to_dense", "pruned"] < share_left * value["kl_to_dense", "not repaired"]
    assert value["perplexity", "pruned"] < value["perplexity", "not repaired"]
    assert value["parameters", "pruned"] == value["parameters", "not repaired"]


class TestSmolLM2:
    @pytest.fixture(scope="class")
    def dense(self):
        """The source, its model and its tokenizer."""
        require("smollm2")
        source = resolve("smollm2")
        return source, source.load_model(), source.load_tokenizer()

    @pytest.fixture(scope="class")
    def written(self, dense, tmp_path_factory):
        """What the command writes that every user types first, on less text."""
        folder = tmp_path_factory.mktemp("smollm2") / "out"
        words = [sys.executable, "-m", "depthcut", "prune", "smollm2", "--remove", "25%", "-o", str(folder)]
        words += ["--method", "shortgpt", "--no-speed", "--evaluation-samples", "2", "--evaluation-length", "128"]
        words += ["--calibration-samples", "2", "--calibration-length", "64"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "reloaded in a fresh process: logits equal bit for bit" in done.stdout
        return folder

    def test_the_reloaded_model_is_the_pruned_one_bit_for_bit(self, dense, written):
        source, model, tokenizer = dense
        plan = Plan.from_file(written / "plan.json")
        assert len({unit.layer for unit in plan.removed}) == 8 and len(plan.removed) == 16
        samples = text_samples(tokenizer, 2, 64)
        pruned = apply(model, source.architecture, plan.removed)
        assert AutoModelForCausalLM.from_pretrained(written).dtype == torch.bfloat16
        reloaded = AutoModelForCausalLM.from_pretrained(written, dtype=torch.float32).eval()
        assert reloaded.config.num_hidden_layers == 22
        assert torch.equal(logits(reloaded, samples), logits(pruned, samples))
        assert torch.equal(generated(reloaded, samples, True), generated(reloaded, samples, False))

    def test_what_was_measured_is_plausible(self, written):
        rows = json.loads((written / "results.json").read_text())
        value = {(row["name"], row["model"]): row["value"] for row in rows}
        assert value["parameters", "dense"] == 134_515_008
        assert value["kv_bytes_per_token", "dense"] == 30 * 2 * 3 * 64 * 4
        assert value["kv_bytes_per_token", "pruned"] == 22 * 2 * 3 * 64 * 4
        assert 1 < value["perplexity", "dense"] < value["perplexity", "pruned"]
        assert 0 < value["kl_to_dense", "pruned"] < 20

    def test_scores_and_the_angular_table_are_those_of_hooks_and_numpy(self, dense):
        source, model, tokenizer = dense
        samples = text_samples(tokenizer, 2, 64)
        scores, angular = static_scores(DecoderStream(model, source.architecture), samples)
        found = {table.metric: table.values for table in scores if table.unit == "block"}

        streams = []
        # The last block's output is what enters the final norm.
        modules = [*model.model.layers, model.model.norm]
        handles = [module.register_forward_pre_hook(lambda _, args: streams.append(args[0])) for module in modules]
        logits(model, samples)
        for handle in handles:
            handle.remove()
        streams = [stream.double().numpy() for stream in streams]
        assert len(streams) == 31

        def cosine(x, y):
            return (x * y).sum(-1) / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1))

        for layer, (x, y) in enumerate(itertools.pairwise(streams)):
            update = np.linalg.norm(y - x, axis=-1)
            expected = {
                "block-influence": 1 - cosine(x, y).mean(),
                "relative-l1": (np.abs(y - x).sum(-1) / np.abs(x).sum(-1)).mean(),
                "relative-l2": (update / np.linalg.norm(x, axis=-1)).mean(),
                "relative-magnitude": (update / np.linalg.norm(y, axis=-1)).mean(),
            }
            for metric, value in expected.items():
                assert found[metric][str(layer)] == pytest.approx(value, rel=1e-5), (metric, layer)
            for n, distance in enumerate(angular[layer], start=1):
                ends = cosine(x[:, -1], streams[layer + n][:, -1])
                assert distance == pytest.approx((np.arccos(ends) / np.pi).mean(), abs=1e-5), (layer, n)

    @pytest.mark.long
    def test_refit_brings_it_nearer_to_the_dense_one_on_other_text(self):
        require("smollm2")
        options = SHORT | {"repair": "refit", "repair_samples": 48}
        require_repaired(depthcut.prune("smollm2", remove="25%", method="shortgpt", **options), share_left=0.8)


@pytest.mark.long
class TestGemma3:
    @pytest.fixture(scope="class")
    def result(self, tmp_path_factory):
        require("gemma3-270m")
        output = tmp_path_factory.mktemp("gemma3") / "out"
        options = SHORT | {"repair": "refit", "repair_samples": 24}
        return depthcut.prune("gemma3-270m", remove=4, method="shortgpt", unit="block", output=output, **options)

    def test_refit_brings_it_nearer_to_the_dense_one_on_other_text(self, result):
        require_repaired(result, share_left=1)

    def test_layer_types_are_those_of_the_kept_blocks(self, result):
        # Every sixth block of the dense model sees the whole context; which ones are left is no longer a pattern.
        dense = 3 * (5 * ["sliding_attention"] + ["full_attention"])
        config = json.loads((result.output / "config.json").read_text())
        removed = {unit.layer for unit in result.plan.removed}
        assert len(removed) == 4
        assert config["layer_types"] == [kind for layer, kind in enumerate(dense) if layer not in removed]
        assert config["num_hidden_layers"] == 14 and config["sliding_window"] == 512

    def test_the_reloaded_model_is_the_one_in_memory_bit_for_bit(self, result):
        samples = text_samples(result.tokenizer, 1, 64)
        reloaded = AutoModelForCausalLM.from_pretrained(result.output, dtype=torch.float32).eval()
        assert torch.equal(logits(reloaded, samples), logits(result.model, samples))
        windows = [getattr(block.self_attn, "sliding_window", None) for block in reloaded.model.layers]
        kinds = reloaded.config.layer_types
        sliding = reloaded.config.sliding_window
        assert windows == [sliding if kind == "sliding_attention" else None for kind in kinds]
        assert torch.equal(generated(reloaded, samples, True), generated(reloaded, samples, False))
