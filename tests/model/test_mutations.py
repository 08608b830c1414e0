"""300 broken files go where the commands take them: each ends in one sentence or is read, and none takes long."""

import json
import random
import shutil
import time

import pytest
from safetensors.torch import load_file

import tiny
from depthcut import cli
from depthcut.ablation.ledger import Ledger
from depthcut.process.journal import Journal
from depthcut.run import apply as run_apply
from depthcut.run.plan_file import read_plan
from depthcut.run.recipe import Recipe
from depthcut.run.session import find_model, pose_problem, prepare
from depthcut.types import InputError, Plan, Step, Unit

MUTATIONS = 50
SEED = 0
SECONDS_EACH = 10
STRANGE = [None, True, -1, 0, 2**70, 1e300, "", "x", "\x00", [], [1], {}, {"a": []}, float("nan"), [[[]]]]
BYTES = ["\x00", "}", '"', "9" * 5000, "[" * 5000, "é", "\udcff"]
STEP = Step(remove=(Unit(1, "attn"), Unit(1, "ffn")), objective=0.1, applied=True)


def mutated(text, chance):
    """The bytes of a file with an entry changed, dropped or nested elsewhere, or with bytes lost or put in."""
    lines = text.splitlines()
    if chance.random() < 0.2:
        return text[: chance.randrange(len(text))].encode()
    if chance.random() < 0.1:
        at = chance.randrange(len(text))
        return (text[:at] + chance.choice(BYTES) + text[at + 1 :]).encode(errors="surrogateescape")
    is_journal = len(lines) > 1 and lines[0] != "{"
    entry = json.loads(lines[-1] if is_journal else text)
    holder = entry
    while True:
        key = chance.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        if not (isinstance(holder[key], dict | list) and holder[key] and chance.random() < 0.7):
            break
        holder = holder[key]
    if chance.random() < 0.3:
        del holder[key]
    else:
        holder[key] = chance.choice(STRANGE)
    changed = json.dumps(entry)
    return "".join(f"{line}\n" for line in ([*lines[:-1], changed] if is_journal else [changed])).encode()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def model(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "model")


@pytest.fixture
def recipe(model, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The keeper of the lighthouse wrote down every ship that passed, its flag and its hour. " * 40)
    short = {"remove": "2", "device": "cpu", "evaluation": str(text), "calibration": str(text)}
    return Recipe.build(model=str(model), evaluation_samples=1, evaluation_length=16, **short)


class LoadsError(Exception):
    """The weights would be read now."""


def command(words, monkeypatch):
    """What the process ends with, run here; anything but an end or a sentence goes through."""
    monkeypatch.setattr("sys.argv", ["depthcut", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, 2)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "index", "plan", "recipe", "journal"])
def test_mutated_files_end_in_a_sentence(model, recipe, name, monkeypatch, tmp_path, capfd):
    path = model / name
    header, known = {"model": "d"}, {"text": "t", "removed": [], "candidate": ["1.ffn"], "batch": 0}
    if name == "index":
        path = model / "model.safetensors.index.json"
        weights = (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
        path.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(load_file(weights), weights.name)}))
    elif name == "plan":
        path = tmp_path / "plan.json"
        values = {"calibration": None, "method": "random", "unit": "block", "budget": "1", "steps": (STEP,)}
        path.write_text(Plan(model=find_model(recipe).provenance, **values).to_json())
    elif name == "recipe":
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps({"model": str(model), "remove": "2", "seed": 0, "protect": ["0"], "repair": "none"}))
    elif name == "journal":
        Journal(path, header).add(known | {"values": [0.5], "unit_evaluations": 3})

    def load(_):
        raise LoadsError

    def of_plan():
        command(["validate", str(path)], monkeypatch)
        monkeypatch.setattr(run_apply, "load", load)
        run_apply.apply_plan(
            recipe, lambda source: read_plan(path, source.provenance, 2), tmp_path / "out", overwrite=True
        )

    def of_model():
        source = find_model(recipe)
        pose_problem(recipe, source)
        prepare(recipe, source, ("evaluation",))

    read = {
        "plan": of_plan,
        "recipe": lambda: command(["validate", str(path)], monkeypatch),
        "journal": lambda: Ledger(Journal(path, header), "t"),
    }.get(name, of_model)
    text, chance = path.read_text(), random.Random(f"{SEED}{name}")
    sentences = []
    for _ in range(MUTATIONS):
        path.write_bytes(mutated(text, chance))
        began = time.process_time()
        try:
            read()
        except InputError as error:
            sentences.append(str(error))
        except LoadsError:
            pass
        assert time.process_time() - began < SECONDS_EACH
    sentences += [line for line in capfd.readouterr().err.splitlines() if line.startswith("depthcut: ")]
    assert sentences
    assert not [sentence for sentence in sentences if "\n" in sentence or "Traceback" in sentence]
