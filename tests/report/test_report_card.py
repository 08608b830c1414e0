"""The model card: valid front matter, the table, and text that stays text."""

from dataclasses import replace

import pytest
import yaml
from example_report import make_tasks, renamed
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from depthcut.report import license_of, renew_model_card, write_model_card
from depthcut.report.card import code_block, front_matter, markdown_text

HOSTILE = "</script><script>alert(1)</script>"


@pytest.fixture
def card_of(tmp_path):
    def write(run, base_model="HuggingFaceTB/SmolLM2-135M", license="apache-2.0"):
        path = tmp_path / "README.md"
        write_model_card(path, run, base_model=base_model, license=license)
        return path.read_text(encoding="utf-8")

    return write


def split(card):
    """The metadata and the Markdown of a card."""
    opening, metadata, body = card.split("---\n", 2)
    assert opening == ""
    return yaml.safe_load(metadata), body


def test_the_front_matter_is_what_the_hub_reads(card_of, run):
    metadata, _ = split(card_of(run))
    metadata.pop("model-index")
    assert metadata == {
        "base_model": "HuggingFaceTB/SmolLM2-135M",
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["depthcut", "pruned", "depth-pruning", "llama"],
    }


def test_what_is_not_known_is_left_out_of_the_front_matter(card_of, run):
    metadata, _ = split(card_of(run, base_model=None, license=None))
    assert "base_model" not in metadata
    assert "license" not in metadata


@pytest.mark.parametrize("name", [HOSTILE, "a: b # c", "- x\n---\ny", "'\"\\<\\x3C", "yes", "Füße/模型"])
def test_any_text_survives_the_front_matter(name):
    text = front_matter({"base_model": name, "tags": [name]})
    assert "<" not in text
    assert yaml.safe_load(text.removeprefix("---\n").removesuffix("---")) == {"base_model": name, "tags": [name]}


def test_the_card_tells_what_was_removed_how_to_load_it_and_how_it_was_made(card_of, run):
    _, body = split(card_of(run))
    assert "8 of 30 blocks removed (blocks 12–17, 25, 26)" in body
    assert "AutoModelForCausalLM.from_pretrained(" in body
    assert f"```sh\n{run.command}\n```" in body
    assert "- Calibration: c4 (validation), 16 × 512 tokens, seed 0" in body
    assert "- Software: depthcut 0.1.0, torch 2.13.0" in body


def test_the_table_renders_with_every_row(card_of, run):
    _, body = split(card_of(run))
    html = MarkdownIt().enable("table").render(body.split("## Use")[0])
    assert html.count("<tr>") == 1 + 8
    assert "| Perplexity <sup>1</sup> | 28.82 ± 0.31 | 97.4 ± 1.1 | ×3.38 |" in body
    assert "<sup>1</sup> WikiText-2 test, 32 × 512 tokens" in body
    assert '<td style="text-align:right">−21.1 %</td>' in html


def test_the_hub_reads_results_of_the_pruned_model_only(card_of, run):
    run = replace(run, measurements=(*run.measurements, *make_tasks()))
    results = ModelCard(card_of(run)).data.eval_results
    assert {(result.dataset_name, result.metric_type): result.metric_value for result in results} == {
        ("WikiText-2 test, 32 × 512 tokens", "perplexity"): 97.4,
        ("WikiText-2 test, 32 × 512 tokens", "kl_to_dense"): 1.211,
        ("arc_easy", "acc"): 0.44,
        ("arc_easy", "acc_norm"): 0.42,
        ("piqa", "acc_norm"): 0.61,
        ("average", "accuracy"): 0.515,
        ("wikitext", "word_perplexity"): 96.2,
        ("generation", "greedy_arithmetic"): 0.05,
    }
    assert {result.task_type for result in results} == {"text-generation"}


def test_tasks_have_a_table_of_their_own(card_of, run):
    _, body = split(card_of(replace(run, measurements=(*run.measurements, *make_tasks()))))
    before, tasks = body.split("## Tasks")
    assert "arc\\_easy" not in before
    assert "| piqa acc\\_norm <sup>1</sup> | 68.0 ± 2.5 % | 61.0 ± 2.4 % | −7.0 ± 1.8 points | 61.1 ± 6.0 % |" in tasks
    assert MarkdownIt().enable("table").render(tasks.split("## Use")[0]).count("<tr>") == 1 + 6


def test_how_to_load_it_follows_from_what_lies_in_the_directory(card_of, run, tmp_path):
    def with_config(model_type):
        (tmp_path / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
        return card_of(run).split("## Use")[1].split("## Limits")[0]

    ordinary, own = with_config("llama"), with_config("depthcut_llama")
    assert "from_pretrained(directory)" in ordinary
    assert "trust_remote_code" not in ordinary
    assert "`vllm serve path/to/this/directory`" in ordinary
    assert "from_pretrained(directory, trust_remote_code=True)" in own
    assert "vllm" not in own
    assert "`depthcut export path/to/this/directory --to FORMAT -o OUT`" in own

    nemotron = with_config("nemotron-nas")
    assert "`vllm serve path/to/this/directory --trust-remote-code`" in nemotron
    assert "from_pretrained" not in nemotron

    (tmp_path / "model-q8_0.gguf").touch()
    gguf = with_config("llama")
    assert "| llama.cpp | `llama-server -m path/to/this/directory/*.gguf` |" in gguf
    assert "from_pretrained" not in gguf


def test_forms_in_folders_of_their_own_are_told_with_their_engines(card_of, run, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "depthcut_llama"}')
    for form in ("gguf", "nemotron-nas"):
        (tmp_path / form).mkdir()
    card = card_of(run)
    assert "| llama.cpp | `llama-server -m path/to/this/directory/gguf/*.gguf` |" in card
    assert "| vLLM, SGLang | `vllm serve path/to/this/directory/nemotron-nas --trust-remote-code` |" in card
    assert "zeroed" not in card


def test_a_renewed_card_keeps_base_model_and_licence(card_of, run, tmp_path):
    first = card_of(run, license="llama3.2")
    renew_model_card(tmp_path / "README.md", run)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == first


def test_the_recipe_stands_in_the_card_as_it_was_given(card_of, run):
    recipe = "model: smollm2\nremove: 25%\n"
    assert f"```yaml\n{recipe}```" in card_of(replace(run, recipe=recipe))
    assert "```yaml" not in card_of(run)


@pytest.mark.parametrize(
    ("card", "license"),
    [
        ("---\nlicense: llama3.2\ntags:\n- x\n---\n# Model", "llama3.2"),
        ("---\ntags:\n- x\n---\n", None),
        ("# Model\nlicense: mit", None),
        ("---\nlicense: [\n---\n", None),
        ("---\n- license\n---\n", None),
        ("---\nlicense: [mit, other]\n---\n", None),
        (None, None),
    ],
)
def test_the_licence_is_carried_over_from_the_dense_models_card(tmp_path, card, license):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert license_of(tmp_path) == license


def test_an_unknown_licence_is_not_passed_over(card_of, run):
    assert "names none that could be read here" in card_of(run, license=None)
    assert "which is apache-2.0" in card_of(run)


def test_hostile_text_stays_text(card_of, run):
    card = card_of(renamed(run, HOSTILE), base_model=HOSTILE, license=HOSTILE)
    assert HOSTILE not in card
    assert "<script" not in card
    metadata, body = split(card)
    assert metadata["base_model"] == HOSTILE
    assert "<script" not in MarkdownIt("commonmark", {"html": True}).enable("table").render(body)


def test_markdown_text_keeps_a_table_cell_whole():
    cell = markdown_text("a | b\n*c* <d> `e` [f](g) _h_")
    html = MarkdownIt().enable("table").render(f"| x |\n|---|\n| {cell} |")
    assert "<td>a | b *c* &lt;d&gt; `e` [f](g) _h_</td>" in html


def test_a_fence_is_longer_than_any_in_the_code():
    html = MarkdownIt().render(code_block("echo ```\n````"))
    assert html == '<pre><code class="language-sh">echo ```\n````\n</code></pre>\n'
