"""GGUF through the command line: as a form of its own, and beside what prune writes."""

import json

import pytest
from gguf_models import REGULAR
from test_gguf_copy import make_plan, rewritten

import tiny
from depthcut.export import VerificationError, hf
from depthcut.export.gguf import Gguf, engine
from depthcut.export.gguf.write import PROBE_TEXT_KEY, source_tokenizer_keys
from depthcut.gguf.container import Value, read_file
from depthcut.model.load import resolve
from depthcut.run.apply_gguf import apply_to_gguf

PRUNE = ["--method", "shortgpt", "--unit", "block", "--remove", "1", "--no-speed", "--repair", "none"]
PRUNE += ["--calibration-samples", "2", "--calibration-length", "16"]
PRUNE += ["--evaluation-samples", "2", "--evaluation-length", "16"]


@pytest.fixture(autouse=True)
def quick_checks(monkeypatch):
    tiny.reload_in_process(monkeypatch)
    monkeypatch.setattr(hf, "GREEDY_TOKENS", 4)
    monkeypatch.setattr(engine, "installed", lambda: False)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("models") / "llama", identity=3)


def test_export_writes_one_file_in_the_type(llama, tmp_path, outcome):
    code, printed = outcome("export", llama, "--to", "gguf", "--tensor-type", "Q8_0", "-o", tmp_path / "out")
    assert code == 0, printed.err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["model.Q8_0.gguf"]


def test_plan_and_card_come_along(llama, tmp_path, outcome):
    assert outcome("prune", llama, *PRUNE, "-o", tmp_path / "pruned")[0] == 0
    code, printed = outcome("export", tmp_path / "pruned", "--to", "gguf", "-o", tmp_path / "out")
    assert code == 0, printed.err
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"model.F32.gguf", "plan.json", "results.json", "README.md", "report.html"} <= written
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`llama-server -m path/to/this/directory/*.gguf`" in card
    assert "from_pretrained" not in card
    assert "depthcut export OUT --to gguf -o out" in card
    file = read_file(tmp_path / "out" / "model.F32.gguf")
    assert file.get("llama.block_count") == tiny.NUM_BLOCKS - 1
    assert file.get("general.name") == "llama"


def test_other_forms_take_no_tensor_type(llama, tmp_path, outcome):
    code, printed = outcome("export", llama, "--to", "hf", "--tensor-type", "q8_0", "-o", tmp_path / "out")
    assert (code, "the format hf takes no tensor type; leave --tensor-type out" in printed.err) == (2, True)


def test_a_model_is_not_replaced_by_its_export(llama, tmp_path, outcome):
    assert outcome("prune", llama, *PRUNE, "-o", tmp_path / "pruned")[0] == 0
    words = ["export", tmp_path / "pruned", "--to", "gguf", "-o", tmp_path / "pruned", "--overwrite"]
    code, printed = outcome(*words)
    assert (code, "is the model itself" in printed.err) == (2, True)
    assert (tmp_path / "pruned" / "model.safetensors").is_file()


def test_prune_writes_further_forms_beside_the_model(llama, tmp_path, outcome):
    code, printed = outcome("prune", llama, *PRUNE, "--export", "gguf", "-o", tmp_path / "out")
    assert code == 0, printed.err
    assert f"gguf written to {tmp_path / 'out' / 'gguf'}, verified" in printed.out
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert read_file(tmp_path / "out" / "gguf" / "model.F32.gguf").get("llama.block_count") == tiny.NUM_BLOCKS - 1
    assert "export:\n- gguf" in (tmp_path / "out" / "recipe.yaml").read_text()


def test_a_form_that_fails_its_verification_leaves_no_output(llama, tmp_path, outcome, monkeypatch):
    def fail(*_):
        raise VerificationError("llama.cpp decodes other tokens")

    monkeypatch.setattr(Gguf, "verify", fail)
    code, printed = outcome("prune", llama, *PRUNE, "--export", "gguf", "-o", tmp_path / "out")
    assert (code, "the output was not written" in printed.err) == (1, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("forms", "words"),
    [
        ("ggfu", "unknown export format 'ggfu'; did you mean gguf"),
        ("hf", "the Hugging Face directory is always written; leave hf out of --export"),
    ],
)
def test_forms_are_checked_before_the_model_is_looked_for(tmp_path, outcome, forms, words):
    code, printed = outcome("prune", tmp_path / "none", *PRUNE, "--export", forms, "-o", tmp_path / "out")
    assert (code, words in printed.err) == (2, True)


def test_a_family_that_is_never_held_is_refused_before_the_search(tmp_path, outcome, monkeypatch):
    tiny.save(tmp_path / "gpt2", "gpt2")
    monkeypatch.setattr("depthcut.model.load.ModelSource.load_model", None)
    code, printed = outcome("prune", tmp_path / "gpt2", *PRUNE, "--export", "gguf", "-o", tmp_path / "out")
    assert code == 2
    assert (
        "GGUF is written for llama, mistral, qwen2, qwen3, phi3, gemma2, gemma3_text, and this is a gpt2 model"
        in printed.err
    )


def test_what_was_found_is_kept_where_a_form_cannot_hold_it(tmp_path, outcome):
    """Without block 3 the windows of this model have no rhythm, which only the search could tell."""
    tiny.save(tmp_path / "gemma", "gemma3_text", identity=3, **REGULAR)
    code, printed = outcome("prune", tmp_path / "gemma", *PRUNE, "--export", "gguf", "-o", tmp_path / "out")
    assert code == 1
    assert "depthcut: gguf was not written: llama.cpp's gemma3 only knows full attention after" in printed.err
    assert "verified" not in printed.out
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert not (tmp_path / "out" / "gguf").exists()


class TestFromAGguf:
    """The tokenizer that a source GGUF has says more than the one that transformers makes of it."""

    @pytest.fixture
    def source(self, llama, tmp_path, outcome):
        assert outcome("export", llama, "--to", "gguf", "-o", tmp_path / "dense")[0] == 0
        file = read_file(tmp_path / "dense" / "model.F32.gguf")
        name = "tokenizer.ggml.pre"
        splitter = {name: Value.of(file.metadata[name].type, "smollm")}
        path = tmp_path / "model.gguf"
        return rewritten(tmp_path / "dense" / "model.F32.gguf", path, splitter)

    def test_its_keys_are_taken_where_it_is_still_there(self, source, tmp_path, outcome):
        code, printed = outcome("export", source, "--to", "gguf", "-o", tmp_path / "out")
        assert code == 0, printed.err
        written = read_file(tmp_path / "out" / "model.F32.gguf")
        assert written.get("tokenizer.ggml.pre") == "smollm"
        assert PROBE_TEXT_KEY not in written.metadata

    def test_so_they_are_after_pruning_and_not_from_a_changed_file(self, source, tmp_path, outcome):
        assert outcome("prune", source, *PRUNE, "-o", tmp_path / "pruned")[0] == 0
        assert outcome("export", tmp_path / "pruned", "--to", "gguf", "-o", tmp_path / "out")[0] == 0
        assert read_file(tmp_path / "out" / "model.BF16.gguf").get("tokenizer.ggml.pre") == "smollm"
        config = resolve(str(tmp_path / "pruned")).config
        assert source_tokenizer_keys(config)
        with source.open("ab") as file:
            file.write(b"x")
        assert source_tokenizer_keys(config) == {}

    def test_a_pruned_gguf_can_be_worked_on_further(self, source, tmp_path, outcome):
        make_plan(source, "1.ffn+2.attn").write(tmp_path / "plan.json")
        written, _ = apply_to_gguf(str(source), tmp_path / "plan.json", tmp_path / "out")
        code, printed = outcome("prune", written, *PRUNE, "-o", tmp_path / "again")
        assert code == 0, printed.err
        assert json.loads((tmp_path / "again" / "config.json").read_text())["num_hidden_layers"] == tiny.NUM_BLOCKS - 2
