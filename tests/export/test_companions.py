"""Files beside the weights: a source's are copied byte for byte, and new ones are words that every reader knows."""

import json

import pytest

import tiny
from depthcut.export import EXPORTS, hf
from depthcut.model.load import resolve
from depthcut.surgery import apply
from depthcut.types import Unit

# Spelled as no writer spells them, so that equal bytes are the source's bytes.
COMPANIONS = {
    "generation_config.json": '{"temperature":0.6,   "do_sample": true, "eos_token_id": [2, 1]}',
    "chat_template.jinja": "{# of the source #}{{ messages }}",
    "chat_template.json": '{"chat_template":   "{{ messages }}"}',
    "additional_chat_templates/tool_use.jinja": "{# tools #}{{ messages }}",
    "preprocessor_config.json": '{"size":   3}',
    "processor_config.json": '{"processor":   1}',
    "special_tokens_map.json": '{"eos_token":   "</s>"}',
    "tokenizer.model": "not read where there is a tokenizer.json",
}
LEFT = {"README.md": "of the source", "training_args.bin": "x", "modeling_own.py": "raise SystemExit"}
REMOVED = [Unit(2, "attn"), Unit(2, "ffn")]


@pytest.fixture
def source(tmp_path):
    folder = tiny.save(tmp_path / "source")
    for name, text in (COMPANIONS | LEFT).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": "{{ messages }}"}, indent=7))
    return resolve(str(folder))


@pytest.mark.parametrize("form", ["hf", "nemotron-nas", "zeroed"])
def test_a_sources_files_are_copied_byte_for_byte(source, form, tmp_path):
    model, written = source.load_model("cpu"), tmp_path / "written"
    written.mkdir()
    EXPORTS.find(form).make().write(apply(model, source.architecture, REMOVED), source.load_tokenizer(), written)
    for name in [*COMPANIONS, "tokenizer.json", "tokenizer_config.json"]:
        assert (written / name).read_bytes() == (source.folder / name).read_bytes(), name
    assert not any((written / name).exists() for name in LEFT)


def test_a_tokenizer_without_files_is_written_in_words_of_transformers_4(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    tokenizer.init_kwargs |= {"is_local": True, "local_files_only": True}
    hf.write_directory(tiny.model(vocab_size=tiny.BYTE_VOCABULARY + 1), tokenizer, tmp_path)
    entries = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert entries["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert entries["additional_special_tokens"] == ["<|tool|>"]
    assert not {"is_local", "local_files_only", "extra_special_tokens"} & entries.keys()
    again = resolve(str(tmp_path)).load_tokenizer()
    text = "a ship<|tool|></s> passed"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert "<|tool|>" in again.all_special_tokens


def test_files_beside_a_gguf_file_are_not_taken_for_its_own(source, tmp_path):
    model, tokenizer = source.load_model("cpu"), source.load_tokenizer()
    for made in (model, tokenizer):
        # As of a GGUF file that lies in another model's directory.
        made.name_or_path = str(source.folder / "model.gguf")
    model.config.name_or_path = model.name_or_path
    written = tmp_path / "written"
    written.mkdir()
    hf.write_directory(model, tokenizer, written)
    assert not (written / "preprocessor_config.json").exists()
    assert (written / "tokenizer_config.json").read_bytes() != (source.folder / "tokenizer_config.json").read_bytes()
