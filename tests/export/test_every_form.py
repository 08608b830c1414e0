"""What every registered form must keep to, so that a new file in export/ is tested at once."""

import hashlib

import pytest
import torch

import tiny
from depthcut.export import EXPORTS, VerificationError
from depthcut.export.hf import write_directory
from depthcut.model.architectures import FAMILIES
from depthcut.run.export import export_model
from depthcut.surgery import apply
from depthcut.types import InputError, Unit

BLOCK = [Unit(2, "attn"), Unit(2, "ffn")]
ENTRIES = [pytest.param(entry, id=entry.name) for entry in EXPORTS]
IDS = torch.arange(3, 13)[None]


@pytest.fixture(scope="module")
def model():
    """Without a block, so that stock code runs it."""
    return apply(tiny.model(vocab_size=tiny.BYTE_VOCABULARY), FAMILIES["llama"], BLOCK).eval()


@pytest.fixture(scope="module")
def directory(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned")
    write_directory(model, tiny.tokenizer(), folder)
    return folder


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def refusal(form, config):
    """What a form says that cannot hold a model of such a configuration; None where it can."""
    try:
        form.check(config)
    except InputError as error:
        return str(error)
    return None


def quantised(family):
    return tiny.config(family, quantization_config={"quant_method": "gptq", "bits": 4})


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_form_says_in_one_sentence_what_it_cannot_hold_before_there_is_work(entry):
    form = entry.make()
    for family in ("llama", "gpt2", "mamba2"):
        for config in (tiny.config(family), quantised(family)):
            words = refusal(form, config)
            assert words is None or ("\n" not in words and not words.endswith("."))
    makes_tensors_anew = entry.name not in ("hf", "mergekit", "teacher-answers")
    assert bool(refusal(form, quantised("llama"))) == makes_tensors_anew
    assert isinstance(form.note, str) and entry.summary and entry.source


@pytest.mark.parametrize("entry", ENTRIES)
def test_what_is_refused_or_does_not_verify_leaves_nothing_behind(entry, directory, tmp_path, monkeypatch):
    def deny(*_):
        raise VerificationError("it is not the model")

    before = digests(directory)
    monkeypatch.setattr(type(entry.make()), "verify", deny)
    with pytest.raises((InputError, VerificationError)):
        export_model(str(directory), entry.name, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [] and digests(directory) == before


SECOND_READER = ("nemotron-nas",)
"""Forms that another program reads, which takes long to start."""


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(entry, id=entry.name, marks=pytest.mark.long if entry.name in SECOND_READER else ())
        for entry in EXPORTS
    ],
)
def test_a_changed_weight_is_noticed_and_the_model_stays_as_it_is(entry, model, tmp_path, monkeypatch):
    form = entry.make()
    if refusal(form, model.config) or entry.name == "mergekit":
        return  # it holds no such model, or no weights
    tiny.reload_in_process(monkeypatch)
    before = {name: each.detach().clone() for name, each in model.state_dict().items()}
    form.write(model, tiny.tokenizer(), tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    weights = max(tmp_path.iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(weights.read_bytes())
    content[-64:] = bytes(byte ^ 0x55 for byte in content[-64:])
    weights.write_bytes(content)
    with pytest.raises(VerificationError):
        form.verify(tmp_path, model, IDS)
    assert all(torch.equal(values, model.state_dict()[name]) for name, values in before.items())
