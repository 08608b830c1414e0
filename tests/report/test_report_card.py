"""The model card: valid front matter, the table, and text that stays text."""

import pytest
import yaml
from markdown_it import MarkdownIt

from depthcut.report import write_model_card
from depthcut.report.card import code_block, front_matter, markdown_text

HOSTILE = "</script><script>alert(1)</script>"


@pytest.fixture
def card_of(tmp_path):
    def write(case, base_model="HuggingFaceTB/SmolLM2-135M", license="apache-2.0"):
        path = tmp_path / "README.md"
        write_model_card(path, **case.card_arguments(), base_model=base_model, license=license)
        return path.read_text(encoding="utf-8")

    return write


def split(card):
    """The metadata and the Markdown of a card."""
    opening, metadata, body = card.split("---\n", 2)
    assert opening == ""
    return yaml.safe_load(metadata), body


def test_the_front_matter_is_what_the_hub_reads(card_of, case):
    metadata, _ = split(card_of(case))
    assert metadata == {
        "base_model": "HuggingFaceTB/SmolLM2-135M",
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["depthcut", "pruned", "depth-pruning", "llama"],
    }


def test_what_is_not_known_is_left_out_of_the_front_matter(card_of, case):
    metadata, _ = split(card_of(case, base_model=None, license=None))
    assert "base_model" not in metadata
    assert "license" not in metadata


@pytest.mark.parametrize("name", [HOSTILE, "a: b # c", "- x\n---\ny", "'\"\\<\\x3C", "yes", "Füße/模型"])
def test_any_text_survives_the_front_matter(name):
    text = front_matter({"base_model": name, "tags": [name]})
    assert "<" not in text
    assert yaml.safe_load(text.removeprefix("---\n").removesuffix("---")) == {"base_model": name, "tags": [name]}


def test_the_card_tells_what_was_removed_how_to_load_it_and_how_it_was_made(card_of, case):
    _, body = split(card_of(case))
    assert "8 of 30 blocks removed (blocks 12–17, 25, 26)" in body
    assert "AutoModelForCausalLM.from_pretrained(" in body
    assert f"```sh\n{case.command}\n```" in body
    assert "- Calibration: c4 (validation), 16 × 512 tokens, seed 0" in body
    assert "- Software: depthcut 0.1.0, torch 2.13.0" in body


def test_the_table_renders_with_every_row(card_of, case):
    _, body = split(card_of(case))
    html = MarkdownIt().enable("table").render(body)
    assert html.count("<tr>") == 1 + 8
    assert "| Perplexity <sup>1</sup> | 28.82 ± 0.31 | 97.4 ± 1.1 | ×3.38 |" in body
    assert "<sup>1</sup> WikiText-2 test, 32 × 512 tokens" in body
    assert '<td style="text-align:right">−21.1 %</td>' in html


def test_hostile_text_stays_text(card_of, case):
    card = card_of(case.renamed(HOSTILE), base_model=HOSTILE, license=HOSTILE)
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
