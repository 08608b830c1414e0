"""Every command and every piece of Python on the pages runs, or is checked against the program that it calls."""

import importlib
import random
import re
import shlex
import shutil
import sys
import tomllib

import pytest
import typer
from code_blocks import DOCS, EXECUTED, PAGES, ROOT, SHOWN, blocks, commands
from typer.exceptions import TyperException

import tiny
from depthcut import cli
from depthcut.calibration import documents
from depthcut.evaluation import generation
from depthcut.export import hf, nemotron_nas
from depthcut.model import load
from depthcut.model.architectures import FAMILIES
from depthcut.model.files import PACKAGED_MODELS
from depthcut.run.recipe import REGISTRIES, Recipe

AT_MOST = {
    "calibration_samples": 4,
    "calibration_length": 32,
    "evaluation_samples": 2,
    "evaluation_length": 32,
    "repair_samples": 8,
}
STAND_INS = {"meta-llama/Llama-3.2-1B": "llama", "Qwen/Qwen2.5-0.5B-Instruct": "qwen2"}
"""Hub models for which a random one of the same family stands, under the same name, in the page's folder."""
HEADED = {
    "Skywork/Skywork-Reward-V2-Qwen3-0.6B": ("classes", None),
    "Qwen/Qwen3-Embedding-0.6B": ("embedding", "lasttoken"),
}
"""Those that end in another head, and how they pool."""
RUN_ELSEWHERE = {
    "--tasks": "tests/evaluation/test_harness.py",
    "--eval": "tests/evaluation/test_harness.py",
    "--engine": "tests/evaluation/test_engines.py",
    "--push-to-hub": "tests/export/test_push.py",
    "--show-completion": "tests/docs/test_install.py",
    "--install-completion": "tests/docs/test_install.py",
    "lora": "tests/repairs/test_healing.py",
    "qlora": "tests/repairs/test_healing_real.py",
    "distill": "tests/repairs/test_healing.py",
}
"""Options and repairs that need a network, an engine or minutes, and the test that runs them."""
PROGRAMS = {"vllm": "test-vllm", "llama-cli": "test", "llama-server": "test", "git": "test", "torchrun": "test"}
"""Other people's programs, and the make target whose tests ask the same of them or of their library."""
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]

every_block = pytest.mark.parametrize(
    "block", [pytest.param(block, id=block.place) for page in PAGES for block in blocks(page)]
)


PROGRAM = typer.main.get_command(cli.app)


def parse(words):
    """Reads a command line with the real program: an unknown option or a wrong number ends it."""
    command, context, rest = PROGRAM, None, words[1:]
    while hasattr(command, "commands"):
        if rest[0].startswith("-"):
            assert rest[0] in {"--help", *(name for option in command.params for name in option.opts)}, rest[0]
            return
        name, command, rest = command.resolve_command(context, rest)
    command.make_context(name, rest)


def check_pip(words):
    """What is to be installed is this package, with an extra that it has, or a packaged model."""
    if shlex.join(words) in {model.install for model in PACKAGED_MODELS.values()}:
        return
    wanted = [word for word in words[2:] if not word.startswith("-")]
    for requirement in wanted:
        name, _, extra = requirement.rstrip("]").partition("[")
        assert name in ("depthcut", "."), f"no package of ours: {requirement}"
        assert not extra or set(extra.split(",")) <= EXTRAS.keys(), f"no extra of ours: {extra}"


def check_python(words):
    """A script is there and knows the options; a piece of code compiles."""
    if words[1] == "-c":
        compile(words[2], "-c", "exec")
    elif words[1] == "-m":
        check([words[2], *words[3:]])
    else:
        source = (ROOT / words[1]).read_text(encoding="utf-8")
        for option in (word for word in words if word.startswith("--")):
            assert f'"{option}"' in source, f"{words[1]} knows no {option}"


def check(words):
    """Checks one command by what it calls."""
    if words[0] == "depthcut":
        parse(words)
    elif words[0] == "make":
        for target in (word for word in words[1:] if "=" not in word):
            assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), f"no make target {target}"
    elif words[0] == "pip":
        check_pip(words)
    elif words[0] == "python":
        check_python(words)
    elif words[0] == "pytest":
        assert all((ROOT / word).exists() for word in words[1:] if "/" in word)
    elif "depthcut" in words:
        parse(words[words.index("depthcut") :])
    else:
        assert words[0] in PROGRAMS, f"{words[0]} is neither run nor checked by anything"


def is_run_elsewhere(words):
    """Whether a command needs what a test has no time or network for; the test that runs its like exists."""
    names = {re.split(r"[,=]", part)[0] for word in words for part in word.split("+")}
    places = [RUN_ELSEWHERE[name] for name in names & RUN_ELSEWHERE.keys()]
    assert all((ROOT / place).is_file() for place in places)
    return bool(places)


@every_block
def test_a_block_says_what_it_is_and_what_it_calls_is_there(block):
    assert block.language in ("sh", "python", *SHOWN), "say the language of this block"
    if block.language == "sh":
        for words in commands(block):
            check(words)
    elif block.language == "python":
        compile(block.text, block.place, "exec")
        for module, names in re.findall(r"^from ([\w.]+) import ([\w, ]+)$", block.text, re.MULTILINE):
            assert all(hasattr(importlib.import_module(module), name.strip()) for name in names.split(",")), module


def random_rows(data_set, *, split, **_):
    """Rows of a hub data set that are English to nobody; another split has others."""
    chooser = random.Random(f"{data_set} {split}")
    for _ in range(200):
        yield " ".join("".join(chooser.choices("abcdefghijklmno", k=5)) for _ in range(60))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A directory of one random model a family."""
    root = tmp_path_factory.mktemp("models")
    families = {*STAND_INS.values(), "llama", "gemma3_text"}
    saved = {family: tiny.save(root / family, family, max_position_embeddings=256) for family in families}
    return saved | {name: tiny.save_headed(root / name, *HEADED[name]) for name in HEADED}


@pytest.fixture
def reader(models, tmp_path, monkeypatch, capsys):
    """Someone who follows a page in an empty folder, with small models for the named ones and little text.

    `reader(block)` does what the block says. What a page registers is forgotten afterwards.
    """
    packaged = {"smollm2": models["llama"], "gemma3-270m": models["gemma3_text"]}
    monkeypatch.setattr(load, "packaged_file", lambda alias, _: packaged[alias])
    monkeypatch.setattr(documents, "read_hub", random_rows)
    monkeypatch.setattr(hf, "GREEDY_TOKENS", 4)
    monkeypatch.setattr(nemotron_nas, "verify_with", lambda *_: None)  # a second reader takes seconds to start
    generate = generation.generate
    monkeypatch.setattr(
        generation, "generate", lambda *given, **options: generate(*given[:3], min(given[3], 3), **options)
    )
    tiny.reload_in_process(monkeypatch)
    build = Recipe.build.__func__

    def with_little_text(cls, **options):
        given = {name: cls.model_fields[name].default for name in AT_MOST} | options
        little = {name: min(given[name] or most, most) for name, most in AT_MOST.items()}
        return build(cls, **(options | little | {"speed": False}))

    monkeypatch.setattr(Recipe, "build", classmethod(with_little_text))
    monkeypatch.chdir(tmp_path)
    for name, family in (STAND_INS | dict(zip(HEADED, HEADED, strict=True))).items():
        shutil.copytree(models[family], tmp_path / name)
    (tmp_path / "notes.jsonl").write_text(
        "".join(f'{{"body": "{row}"}}\n' for row in random_rows("notes", split="train"))
    )
    for registry in REGISTRIES.values():
        list(registry)  # what its folder has is registered before, and stays
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    tables = [(table, set(table)) for table in (FAMILIES,)]
    namespace = {}

    def follow(block):
        if block.title:
            (tmp_path / block.title).write_text(block.text)
        elif block.language == "python":
            exec(compile(block.text, block.place, "exec"), namespace)
        elif block.language == "sh":
            for words in commands(block):
                if words[0] == "depthcut" and not is_run_elsewhere(words):
                    monkeypatch.setattr(sys, "argv", words)
                    with pytest.raises(SystemExit) as ended:
                        cli.main()
                    assert not ended.value.code, f"{block.place}: {shlex.join(words)}: {capsys.readouterr().err}"

    yield follow
    for table, known in tables:
        for added in table.keys() - known:
            del table[added]


@pytest.mark.parametrize("page", EXECUTED, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_reader_who_follows_the_page_gets_to_its_end(page, reader):
    for block in blocks(page):
        reader(block)


def test_a_wrong_option_on_a_page_is_found():
    with pytest.raises(TyperException, match="No such option: --remov"):
        check(["depthcut", "prune", "smollm2", "--remov", "25%", "-o", "out"])
    with pytest.raises(AssertionError, match="no make target dmo"):
        check(["make", "dmo"])
    with pytest.raises(AssertionError, match="no extra of ours: evl"):
        check(["pip", "install", "depthcut[evl]"])
    with pytest.raises(AssertionError, match="frobnicate is neither run nor checked"):
        check(["frobnicate"])


def test_the_guide_is_executed():
    assert len(EXECUTED) >= 10 and DOCS / "guide" / "prune.md" in EXECUTED
