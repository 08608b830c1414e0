"""A bad input must end with one sentence and exit code 2, before weights load where possible, and leave nothing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from depthcut.model.load import ModelSource

SMALL = {
    "--calibration-samples": "2",
    "--calibration-length": "16",
    "--evaluation-samples": "2",
    "--evaluation-length": "16",
    "--method": "shortgpt",
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def gpt_neox(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("models") / "gpt_neox", "gpt_neox")


@pytest.fixture
def weights_stay_unread(monkeypatch):
    def fail(*_):
        raise AssertionError("weights were loaded before a problem was reported that needs none")

    monkeypatch.setattr(ModelSource, "load_model", fail)


@pytest.fixture
def error(exit_code, capsys, tmp_path):
    """`error(words...)`: the one sentence that a command ends with, having written nothing."""

    def run(*words):
        before = sorted(tmp_path.rglob("*"))
        code = exit_code(*words)
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("scoring")]
        assert code == 2, lines
        assert len(lines) == 1 and lines[0].startswith("depthcut: "), lines
        assert sorted(tmp_path.rglob("*")) == before
        return lines[0].removeprefix("depthcut: ")

    return run


@pytest.fixture
def prune_error(error, llama, tmp_path):
    """`prune_error("--option", "value", ...)`: the sentence for `depthcut prune` on the tiny model."""

    def run(*options, model=llama, output=tmp_path / "out"):
        words = [str(option) for option in options]
        if "--remove" not in words and "--budget" not in words:
            words += ["--remove", "2"]
        for option, value in SMALL.items():
            words += [] if option in words else [option, value]
        return error("prune", model, "-o", output, *words)

    return run


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "shrtgpt"], "unknown method 'shrtgpt'; did you mean shortgpt? known: "),
        (["--method", "one-shot", "--metric", "cosin"], "unknown metric 'cosin'; did you mean cosine?"),
        (
            ["--method", "uidl", "--metric", "cosine"],
            "method 'uidl' takes no metric; leave --metric out, or choose another",
        ),
        (["--swap"], "method 'shortgpt' takes no swap; leave --swap out"),
        (["--method", "greedy", "--objective", "kll"], "unknown objective 'kll'; did you mean kl?"),
        (["--memory-budget", "lots"], "memory budget 'lots' is no amount; write 2GiB or 800MiB"),
        (["--unit", "blok"], "unit: Input should be 'block', 'pair', 'attn', 'ffn' or 'sublayer'"),
        (["--remove", "6"], "cannot remove 6 of 6 block units: at most 5 can go"),
        (
            ["--remove", "7", "--unit", "pair", "--method", "random"],
            "cannot remove 7 of 6 pair units: at most 5 can go",
        ),
        (["--remove", "12", "--unit", "sublayer"], "cannot remove 12 of 12 sublayer units: at most 11 can go"),
        (["--remove", "100%"], "something must remain"),
        (["--remove", "2.5"], "'2.5' is no amount: write a share such as 25% or a count such as 8"),
        (["--remove", "much"], "'much' is no amount"),
        (
            ["--remove", "2", "--budget", "kv=0.7"],
            "give exactly one of remove (25% or 8), budget (parameters=0.8 or kv=0.7)",
        ),
        (["--budget", "memory=0.5"], "write parameters=0.8, kv=0.7 or latency=0.8"),
        (["--budget", "parameters=1.2"], "the fraction between 0 and 1 that stays"),
        (["--remove", "4", "--protect", "0,1,5"], "cannot remove 4 of 6 block units: at most 3 can go"),
        (["--protect", "first"], "cannot protect 'first': this model has no such units; write a block (0 to 5)"),
        (["--protect", "6"], "cannot protect '6'"),
        (
            ["--protect", "9.attn"],
            "cannot protect '9.attn': this model has no such units; write a block (0 to 5), a range (0-5) or",
        ),
        (["--dtype", "int8"], "dtype: Input should be 'auto', 'float32', 'bfloat16' or 'float16'"),
        (["--device", "gpu"], "there is no device 'gpu' here; use auto, cpu"),
        (["--revision", "main"], "is no model of the hub and has no revision 'main'"),
        (
            ["--repair", "lora"],
            "lora would train on 80000 sequences and its text has 8, so it would learn them by heart; give "
            "--repair-samples 10000 or more, or train less: lora,steps=...",
        ),
        (["--repair", "magic"], "unknown repair 'magic'; known: "),
        (["--batch-size", "0"], "batch_size: Input should be greater than or equal to 1"),
        (["--calibration-samples", "0"], "calibration_samples: Input should be greater than or equal to 1"),
        (["--calibration-length", "65"], "longer than the model's context of 64; give --calibration-length 64 or less"),
        (["--evaluation-length", "65"], "longer than the model's context of 64; give --evaluation-length 64 or less"),
        (["--calibration", "stdlb"], "unknown text 'stdlb'"),
        (["--calibration", "/no/such/file.txt"], "there is no file /no/such/file.txt"),
        (["--evaluation", "self"], "`self` is text that the model writes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("weights_stay_unread")
def test_an_option_that_cannot_be_is_refused(prune_error, options, words):
    assert words in prune_error(*options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "uidl", "--unit", "attn"], "uidl removes whole blocks, not attn units"),
        (["--method", "uidl", "--remove", "4", "--protect", "2"], "no window of unprotected blocks meets the budget"),
        (["--method", "one-shot", "--unit", "pair"], "no scores for pairs; use --unit block, attn, ffn or sublayer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_only_a_method_knows_is_refused(prune_error, options, words):
    assert words in prune_error(*options)


@pytest.mark.usefixtures("weights_stay_unread")
def test_an_amount_is_needed(error, llama, tmp_path):
    sentence = error("prune", llama, "-o", tmp_path / "out")
    assert sentence.startswith("give exactly one of remove (25% or 8), budget (parameters=0.8 or kv=0.7)")


@pytest.mark.usefixtures("weights_stay_unread")
def test_a_dry_run_is_refused_for_the_same_reasons(prune_error):
    assert "cannot remove 6 of 6" in prune_error("--remove", "6", "--dry-run")


@pytest.mark.usefixtures("weights_stay_unread")
class TestModel:
    def test_unknown_name(self, prune_error):
        assert "no model 'smolm2'" in (sentence := prune_error(model="smolm2"))
        assert "did you mean 'smollm2'?" in sentence

    def test_no_such_path(self, prune_error, tmp_path):
        assert "there is no model at" in prune_error(model=tmp_path / "nothing" / "here")
        assert "there is no file" in prune_error(model=tmp_path / "nothing.gguf")

    def test_directory_without_a_model(self, prune_error, tmp_path):
        (tmp_path / "empty").mkdir()
        assert "holds no model: it has no config.json" in prune_error(model=tmp_path / "empty")

    def test_directory_without_weights(self, prune_error, llama, tmp_path):
        folder = shutil.copytree(llama, tmp_path / "model")
        (folder / "model.safetensors").rename(folder / "model.bin")
        assert "holds no safetensors weights" in prune_error(model=folder)

    def test_directory_without_a_tokenizer(self, prune_error, llama, tmp_path):
        folder = shutil.copytree(llama, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer*"))
        assert "cannot read the tokenizer of" in prune_error(model=folder)

    def test_tokenizer_of_another_model(self, prune_error, llama, tmp_path):
        folder = shutil.copytree(llama, tmp_path / "model")
        other = tiny.save(tmp_path / "other", vocab_size=tiny.VOCABULARY)
        shutil.copy(other / "model.safetensors", folder)
        shutil.copy(other / "config.json", folder)
        assert "the model knows 97 tokens; they do not belong together" in prune_error(model=folder)

    @pytest.mark.parametrize(
        ("model_type", "reason"),
        [
            ("zamba2", "its blocks share attentions"),
            ("t5", "they have an encoder beside the decoder"),
            ("hrm_text", "it runs its blocks several times over"),
        ],
    )
    def test_unsupported_family_says_why(self, prune_error, llama, tmp_path, model_type, reason):
        folder = shutil.copytree(llama, tmp_path / "model")
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        assert f"models of type '{model_type}' cannot be pruned: {reason}" in prune_error(model=folder)

    def test_family_that_transformers_does_not_know(self, prune_error, llama, tmp_path):
        folder = shutil.copytree(llama, tmp_path / "model")
        (folder / "config.json").write_text(json.dumps({"model_type": "nonsense"}))
        assert "has no causal language model of that type; give another model" in prune_error(model=folder)

    def test_configuration_that_is_no_json(self, prune_error, llama, tmp_path):
        folder = shutil.copytree(llama, tmp_path / "model")
        (folder / "config.json").write_text("{")
        assert "cannot read the configuration of" in prune_error(model=folder)

    @pytest.mark.parametrize("kept", [5, 1000, -100])
    def test_truncated_safetensors(self, prune_error, llama, tmp_path, kept):
        folder = shutil.copytree(llama, tmp_path / "model")
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:kept])
        assert f"{weights} is damaged" in prune_error(model=folder)

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a model"])
    def test_file_that_is_no_gguf(self, prune_error, tmp_path, content):
        file = tmp_path / "model.gguf"
        file.write_bytes(content)
        assert f"{file} is no GGUF file" in prune_error(model=file)

    @pytest.mark.parametrize("content", [b"GGUF", b"GGUF\x03\0\0\0" + 16 * b"\xff"])
    def test_truncated_gguf(self, prune_error, tmp_path, content):
        file = tmp_path / "model.gguf"
        file.write_bytes(content)
        assert f"{file} is damaged" in prune_error(model=file)

    def test_pairs_of_parallel_branches(self, prune_error, gpt_neox):
        sentence = prune_error("--unit", "pair", "--method", "sequential", model=gpt_neox)
        assert "attention and feed-forward part of a block read the same stream" in sentence


class TestWeights:
    def test_a_missing_tensor(self, prune_error, llama, tmp_path):
        folder = shutil.copytree(llama, tmp_path / "model")
        tensors = load_file(folder / "model.safetensors")
        del tensors["model.layers.3.mlp.up_proj.weight"]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        assert "lack model.layers.3.mlp.up_proj.weight" in prune_error(model=folder)

    def test_a_tensor_of_another_shape(self, prune_error, llama, tmp_path):
        folder = shutil.copytree(llama, tmp_path / "model")
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"] = torch.ones(7)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        assert "makes model.norm.weight 32, and the files hold 7" in prune_error(model=folder)

    @pytest.mark.parametrize("calibration", ["stdlib", "self"])
    @pytest.mark.parametrize(
        ("tensor", "where"),
        [
            ("model.layers.3.mlp.up_proj.weight", "3.ffn"),
            ("model.embed_tokens.weight", "the embedding"),
            ("lm_head.weight", "the output"),
        ],
    )
    def test_nan(self, prune_error, llama, tmp_path, tensor, where, calibration):
        folder = shutil.copytree(llama, tmp_path / "model")
        tensors = load_file(folder / "model.safetensors")
        tensors[tensor].fill_(torch.nan)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        sentence = prune_error("--calibration", calibration, model=folder)
        assert f"the activations at {where} are not finite (NaN or infinite)" in sentence
        assert "--dtype float32" in sentence

    def test_nan_on_a_token_that_the_probe_does_not_see(self, prune_error, llama, tmp_path):
        folder = shutil.copytree(llama, tmp_path / "model")
        tensors = load_file(folder / "model.safetensors")
        token = tiny.tokenizer()("~")["input_ids"][0]
        tensors["model.embed_tokens.weight"][token] = torch.nan
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        text = tmp_path / "text.txt"
        text.write_text("A plain beginning of some length, and then a token without a vector ~ " * 4)
        options = ["--calibration", f"{text},order=first", "--calibration-length", "48"]
        assert "the activations at 0.attn are not finite" in prune_error(*options, model=folder)


@pytest.mark.usefixtures("weights_stay_unread")
class TestText:
    @pytest.mark.parametrize("option", ["--calibration", "--evaluation"])
    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("empty.txt", b"", "is empty: name a text with words in it"),
            ("blank.txt", b" \n\n \n", "is empty: name a text with words in it"),
            ("picture.txt", b"\x89PNG\r\n\x1a\n\xff\xfe", "is not text: it is not UTF-8"),
            ("words.txt", "Wörter".encode("utf-16-le"), "is not text"),
            ("short.txt", b"ten tokens", "is shorter than one sample: it holds 10 tokens, and a sample takes 16"),
            ("some.txt", b"enough for one sample", "ask for at most 1 samples"),
            ("rows.jsonl", b'{"body": "words"}\n', "has no column 'text'; its columns are body"),
            ("rows.jsonl", b'{"text": 7}\n', "holds int, not text"),
            ("rows.jsonl", b'{"text": \n', "line 1 of"),
            ("rows.jsonl.gz", b"plain", "is no complete gzip file"),
            ("rows.parquet", b"plain", "is no parquet file"),
        ],
        ids=lambda value: value if isinstance(value, str) and "." in value else "",
    )
    def test_file(self, prune_error, tmp_path, option, name, content, words):
        file = tmp_path / name
        file.write_bytes(content)
        assert words in (sentence := prune_error(option, file))
        assert str(file) in sentence

    def test_wrong_column_setting(self, prune_error, tmp_path):
        file = tmp_path / "rows.jsonl"
        file.write_text(json.dumps({"text": "words " * 50}) + "\n")
        words = prune_error("--calibration", f"{file},column=body")
        assert f"row 1 of {file} has no column 'body'; its columns are text" in words

    def test_the_same_text_for_both(self, prune_error, tmp_path):
        file = tmp_path / "text.txt"
        file.write_text("The same few words serve for both purposes here. " * 9)
        sentence = prune_error("--calibration", file, "--evaluation", file)
        assert "1 documents left out because the other text holds them" in sentence

    def test_the_same_sequences_under_another_name(self, prune_error, tmp_path):
        for name in ("one.txt", "two.txt"):
            (tmp_path / name).write_text("words" * 40 + name)
        sentence = prune_error(
            "--calibration", f"{tmp_path / 'one.txt'},order=first", "--evaluation", tmp_path / "two.txt"
        )
        assert "a model is not judged on the text it was calibrated on" in sentence


@pytest.mark.usefixtures("weights_stay_unread")
class TestOutput:
    def test_is_not_empty(self, prune_error, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("years of work")
        assert "exists and is not empty; choose another, or pass --overwrite" in prune_error()
        assert "holds no result of depthcut, so it is not overwritten" in prune_error("--overwrite")
        assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"

    def test_is_a_file(self, prune_error, tmp_path):
        (tmp_path / "out").write_text("")
        assert "is a file; name a directory" in prune_error()
        assert f"{tmp_path / 'out'} is no directory" in prune_error(output=tmp_path / "out" / "below")

    def test_is_the_model_itself(self, prune_error, llama, tmp_path):
        folder = shutil.copytree(llama, tmp_path / "model")
        (folder / "plan.json").write_text("{}")
        assert "is the model itself" in prune_error("--overwrite", model=folder, output=folder)

    def test_may_not_be_written(self, prune_error, tmp_path, monkeypatch):
        # Asked of the system by a stand-in, because tests may run as root, whom no mode stops.
        monkeypatch.setattr("os.access", lambda *_, **__: False)
        assert f"cannot be written: no permission in {tmp_path}" in prune_error()

    @pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that takes no files from anyone")
    def test_cannot_be_written_by_anyone(self, prune_error):
        assert "the output /proc/depthcut/out cannot be written" in prune_error(output="/proc/depthcut/out")

    def test_unfinished_run(self, prune_error, tmp_path):
        unfinished = tmp_path / ".out.unfinished"
        unfinished.mkdir()
        (unfinished / "recipe.yaml").write_text("model: another\n")
        assert "pass --resume to go on with it, or --overwrite to throw it away" in prune_error()
        assert "was begun with other options" in prune_error("--resume")
        assert (unfinished / "recipe.yaml").read_text() == "model: another\n"


@pytest.mark.usefixtures("weights_stay_unread")
class TestRecipe:
    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("model: [unclosed", "is no YAML text"),
            ("just words", "is no list of options; write lines such as `model: smollm2`"),
            ("", "is no list of options"),
            ("remove: 2", "model: Field required"),
            ("model: smollm2\nremove: 2\nmethd: uidl", "methd: Extra inputs are not permitted"),
            ("model: smollm2\nremove: 2\nseed: early", "seed: Input should be a valid integer"),
            ("model: smollm2\nremove: 2\nbudget: kv=0.7", "exactly one of remove"),
            ("model: smollm2\n1: 2", "is no list of options"),
        ],
    )
    @pytest.mark.parametrize("command", ["run", "validate"])
    def test_bad_yaml(self, error, tmp_path, content, words, command):
        file = tmp_path / "recipe.yaml"
        file.write_text(content)
        output = ["-o", tmp_path / "out"] if command == "run" else []
        assert words in error(command, file, *output)

    def test_no_such_file(self, error, tmp_path):
        words = f"cannot read the recipe {tmp_path / 'none.yaml'}"
        assert words in error("run", tmp_path / "none.yaml", "-o", tmp_path / "out")


@pytest.mark.usefixtures("weights_stay_unread")
class TestArtefacts:
    @pytest.mark.parametrize("command", ["apply", "report", "eval", "validate"])
    def test_no_such_plan(self, error, llama, tmp_path, command):
        plan = tmp_path / "plan.json"
        words = {
            "apply": ["apply", llama, plan, "-o", tmp_path / "out"],
            "report": ["report", tmp_path],
            "eval": ["eval", tmp_path],
            "validate": ["validate", plan],
        }
        assert f"cannot read {plan}: No such file or directory" in error(*words[command])

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("plan.json", "{", "is no plan of depthcut"),
            ("plan.json", '{"steps": []}', "is no plan of depthcut: model: Field required"),
            ("scores.json", "[]", "is no scoretable of depthcut"),
            ("results.json", '[{"name": "perplexity"}]', "holds no measurements of depthcut: 0.value: Field required"),
        ],
    )
    def test_damaged(self, error, tmp_path, name, content, words):
        (tmp_path / name).write_text(content)
        assert words in error("validate", tmp_path / name)

    def test_unknown_schema(self, error):
        assert "unknown schema 'plans'; did you mean plan?" in error("schema", "plans")


def test_the_console_script_ends_alike(llama, tmp_path):
    words = [sys.executable, "-m", "depthcut", "prune", str(llama), "-o", str(tmp_path / "out")]
    words += ["--remove", "6", "--unit", "block"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("depthcut: cannot remove 6 of 6 block units") and ended.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
