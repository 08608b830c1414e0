"""Options and recipes that cannot be are refused before weights load."""

import subprocess
import sys

import pytest


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


@pytest.mark.long
def test_the_console_script_ends_alike(llama, tmp_path):
    words = [sys.executable, "-m", "depthcut", "prune", str(llama), "-o", str(tmp_path / "out")]
    words += ["--remove", "6", "--unit", "block"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("depthcut: cannot remove 6 of 6 block units") and ended.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
