"""Recipes: all are valid without a network, small ones need none at all, and each is found, read and refused well."""

import pytest
import yaml

import tiny
from depthcut.calibration import parse_source
from depthcut.export import nemotron_nas
from depthcut.model.files import PACKAGED_MODELS
from depthcut.recipes import check_recipe, find_recipe, load_recipe, packaged_recipes
from depthcut.run.prune import prune_model
from depthcut.run.recipe import Recipe
from depthcut.studies.recipe import StudyRecipe
from depthcut.types import InputError, Plan

NAMES = [recipe.name for recipe in packaged_recipes()]
TEXT = {"calibration_samples": 3, "calibration_length": 24, "evaluation_samples": 2, "evaluation_length": 24}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("recipes") / "model", identity=3, max_position_embeddings=512)


@pytest.fixture
def write(tmp_path):
    """`write(options)`: a recipe file."""

    def file(**options):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(options))
        return path

    return file


def run_of(loaded):
    return loaded.recipe if isinstance(loaded, StudyRecipe) else loaded


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_and_its_small_variant_are_valid(name):
    check_recipe(find_recipe(name))


@pytest.mark.parametrize("name", NAMES)
def test_every_small_variant_needs_no_network(name):
    small = run_of(load_recipe(find_recipe(name), small=True))
    assert small.model in PACKAGED_MODELS
    assert small.tasks == ()
    texts = [small.calibration, small.evaluation, *filter(None, [small.repair_text])]
    assert {part.kind for text in texts for part in parse_source(text).parts} == {"stdlib"}
    assert small.calibration_samples * small.calibration_length <= 1024
    assert small.evaluation_samples * small.evaluation_length <= 1024


@pytest.mark.parametrize("name", NAMES)
def test_a_small_variant_asks_the_same_question_of_another_model(name):
    full, small = (load_recipe(find_recipe(name), small=each) for each in (False, True))
    assert type(full) is type(small)
    if isinstance(full, StudyRecipe):
        assert small.question.study == full.question.study
        assert set(getattr(small.question, "methods", ())) <= set(getattr(full.question, "methods", ()))
    kinds = [recipe.budget and recipe.budget.partition("=")[0] for recipe in map(run_of, (full, small))]
    assert kinds[0] == kinds[1]
    assert run_of(small).unit == run_of(full).unit


@pytest.mark.parametrize("recipe", packaged_recipes(), ids=NAMES)
def test_every_recipe_says_what_it_is_what_it_costs_and_what_to_expect(recipe):
    assert recipe.summary.endswith(".") and len(recipe.summary) <= 160
    assert len({"Reproduces", "Use"} & recipe.notes.keys()) == 1
    assert recipe.notes.keys() - {"Reproduces", "Use"} == {"Cost", "Expect", "Small"}
    assert all(text.endswith(".") or text.endswith("`.") for text in recipe.notes.values())
    # A cost that nobody can check is none: it says how it was come by.
    assert "arithmetic" in recipe.notes["Cost"]
    assert "Reproduces" not in recipe.notes or "arXiv" in recipe.notes["Reproduces"]


@pytest.mark.parametrize("name", NAMES)
def test_every_small_variant_runs_to_its_end_on_a_tiny_model(name, model, tmp_path, monkeypatch):
    """`make recipes` runs them on real models; here the model has six blocks, so that amounts are its own."""
    tiny.reload_in_process(monkeypatch)
    monkeypatch.setattr(nemotron_nas, "verify_with", lambda *_: None)  # a second reader takes seconds to start
    loaded = load_recipe(find_recipe(name), small=True)
    changes = {"model": str(model), "speed": False, "evaluation_samples": 2, "batch_size": 2}
    recipe = run_of(loaded)
    if recipe.remove:
        changes["remove"] = "2"
    if recipe.budget and recipe.budget.startswith("bytes"):
        changes["budget"] = "bytes=200KB"
    if isinstance(loaded, StudyRecipe):
        question = loaded.question
        if getattr(question, "ratios", None):
            question = question.model_copy(update={"ratios": ("20%",)})
        study = StudyRecipe(question, recipe.model_copy(update=changes))
        study.run(tmp_path / "out")
        assert (tmp_path / "out" / "study.md").is_file()
        return
    result = prune_model(recipe.model_copy(update=changes), tmp_path / "out")
    assert Plan.from_file(tmp_path / "out" / "plan.json").removed == result.plan.removed
    assert all((tmp_path / "out" / form).is_dir() for form in recipe.export)


def test_recipes_are_listed(command):
    printed = command("ls").replace("\n", " ")
    assert all(name in printed for name in NAMES)


@pytest.mark.usefixtures("quick_reload")
def test_a_recipe_is_run_by_its_small_variant(write, model, command, tmp_path):
    path = write(model="no/such-model", remove="9", method="shortgpt", small={"model": str(model), "remove": 1, **TEXT})
    command("run", path, "--small", "-o", tmp_path / "out")
    assert {unit.layer for unit in Plan.from_file(tmp_path / "out" / "plan.json").removed} == {3}


def test_what_is_empty_under_small_takes_the_default(write):
    path = write(model="a/b", remove="9", tasks=["mmlu"], num_fewshot=5, small={"tasks": None, "num_fewshot": None})
    assert load_recipe(path, small=True) == Recipe(model="a/b", remove="9")
    assert load_recipe(path).tasks == ("mmlu",)


def test_a_study_in_a_file_is_the_study_of_the_command_line(write, model, command, tmp_path):
    text = [word for name, value in TEXT.items() for word in (f"--{name.replace('_', '-')}", value)]
    options = {"model": str(model), "study": "compare", "methods": ["shortgpt", "relative-l2"], "ratios": ["20%"]}
    command("run", write(**options, **TEXT), "-o", tmp_path / "file")
    words = ["--methods", "shortgpt,relative-l2", "--ratios", "20%"]
    command("study", "compare", model, *words, *text, "-o", tmp_path / "words")
    tables = [(tmp_path / each / "perplexity.csv").read_text() for each in ("file", "words")]
    assert tables[0] == tables[1]
    assert tables[0].count("\n") == 4
    settings = [(tmp_path / each / "settings.json").read_text() for each in ("file", "words")]
    assert settings[0] == settings[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"study": "swep"}, "unknown study 'swep'; did you mean sweep?"),
        ({"study": "sweep", "methods": ["shrtgpt"], "remove": 2}, "unknown method 'shrtgpt'; did you mean shortgpt?"),
        ({"study": "sweep", "methods": [], "remove": 2}, "no method was named; give some with --methods"),
        (
            {"study": "sweep", "methods": ["uidl"], "method": "uidl", "remove": 2},
            "the study sweep takes no method; leave it out",
        ),
        ({"study": "inspect", "export": ["gguf"], "remove": 2}, "the study inspect takes no export; leave it out"),
        (
            {"study": "compare", "methods": ["uidl"], "ratios": ["much"]},
            "'much' is no share of the parameters; write one above 0% and below 100%",
        ),
        ({"study": "sweep", "methods": ["uidl"], "remove": 2, "repair": ["magic"]}, "unknown repair 'magic'"),
        ({"remove": 2, "small": "yes"}, "what stands under small: in the recipe"),
        ({"remove": 2, "small": {"remove": "much"}}, "'much' is no amount"),
        ({"remove": 2, "ratios": ["10%"]}, "the recipe is not valid: ratios: Extra inputs are not permitted"),
        ({"budget": "bytes=8"}, "budget 'bytes=8' is unknown: write parameters=0.8"),
        ({"budget": "bytes=manyB"}, "budget 'manyB' is no amount; write 2GiB or 800MiB"),
    ],
)
def test_a_bad_recipe_is_told_in_a_sentence(options, words, write, command):
    assert words in command("validate", write(model="a/b", **options), code=2)


def test_an_unknown_recipe_names_the_nearest(command, tmp_path):
    printed = command("run", "finercut-llama3-8b", "-o", tmp_path / "out", code=2)
    assert "unknown recipe 'finercut-llama3-8b'; did you mean finercut-llama-3-8b" in printed
    assert "a file of your own ends in .yaml" in printed


def test_a_recipe_without_a_small_variant_says_so(write, command, tmp_path):
    printed = command("run", write(model="a/b", remove=2), "--small", "-o", tmp_path / "out", code=2)
    assert "has no small variant; leave --small out" in printed


def test_a_study_has_no_plan_to_print(command, tmp_path):
    printed = command("run", "uidl-phi-2", "--dry-run", "-o", tmp_path / "out", code=2)
    assert "a study writes no model" in printed


def test_validation_reaches_for_no_network(monkeypatch):
    def reach(*_):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("depthcut.run.recipe.check_source", reach)
    full = load_recipe(find_recipe("smallest-loss-at-25-percent"))
    full.check(offline=True)
    with pytest.raises(AssertionError, match="the hub was asked"):
        full.check()


def test_a_metric_stands_for_ranking_by_it(model, tmp_path):
    recipe = Recipe(model=str(model), remove="1", unit="block", **TEXT)
    options = recipe.model_dump(exclude={"method", "speed", "export", "generation", "compare", "effort"})
    study = StudyRecipe.build(
        {name: value for name, value in options.items() if name != "repair"}
        | {"study": "sweep", "methods": ["relative-l1", "kl"]}
    )
    study.run(tmp_path / "out")
    for method in ("relative-l1", "kl"):
        plan = Plan.from_file(tmp_path / "out" / "paths" / method / "plan-1.json")
        assert plan.method == "one-shot" and {unit.layer for unit in plan.removed} == {3}
        assert plan.objective == method


def test_a_budget_in_bytes_is_met_and_by_no_more_than_a_block(model):
    import depthcut
    from depthcut.model.load import resolve
    from depthcut.model.units import sizes_from_config

    source = resolve(str(model))
    sizes = sizes_from_config(source.config, source.architecture, source.dtype)
    block = sum(size.parameters for unit, size in sizes.units.items() if unit.layer == 0)
    allowed = 4 * (sizes.parameters - block) - 4
    result = depthcut.prune(str(model), method="shortgpt", budget=f"bytes={allowed}B", speed=False, **TEXT)
    stored = sum(parameter.numel() * parameter.itemsize for parameter in result.model.parameters())
    assert allowed - 4 * block <= stored <= allowed
    assert len(result.plan.removed) == 4


def test_a_budget_in_bytes_that_the_model_meets_already_is_refused(model):
    import depthcut

    with pytest.raises(InputError, match=r"nothing has to go: the weights take 0\.\d+ GB \(4 bytes a parameter\)"):
        depthcut.prune(str(model), budget="bytes=1GB", **TEXT)
