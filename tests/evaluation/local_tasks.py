"""Small tasks of lm-evaluation-harness, written into a folder: choices, free text and a perplexity."""

from __future__ import annotations

import json
from pathlib import Path

NUM_QUESTIONS = 12
LOADER = """
import json
from pathlib import Path

import datasets


def load(**_):
    rows = [json.loads(line) for line in (Path(__file__).parent / "rows.jsonl").read_text().splitlines()]
    return datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})


def words(document, results):
    score = results[0]
    count = len(document["question"].split())
    return {"word_perplexity": (score, count), "byte_perplexity": (score, len(document["question"]))}
"""
CHOICES = """
task: colours
custom_dataset: !function tools.load
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "{{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
doc_to_choice: "{{options}}"
metric_list:
  - metric: acc
  - metric: acc_norm
metadata:
  version: 1.0
"""
TEXT = """
task: sentences
custom_dataset: !function tools.load
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
process_results: !function tools.words
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
metadata:
  version: 1.0
"""
FREE = """
task: completions
custom_dataset: !function tools.load
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{options[answer]}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 4
metric_list:
  - metric: exact_match
metadata:
  version: 1.0
"""
UNSAFE = FREE.replace("task: completions", "task: programs\nunsafe_code: true")
BROKEN = CHOICES.replace("task: colours", "task: broken").replace("{{options}}", "{{nothing.at.all}}")
GROUP = """
group: both
task: [colours, numbers]
aggregate_metric_list:
  - metric: acc
    weight_by_size: false
metadata:
  version: 1.0
"""


def write_tasks(folder: Path) -> Path:
    """Writes the tasks `colours`, `numbers`, `sentences`, `completions`, `programs` and `broken`, and group `both`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "question": f"Box {number} of {3 * number} is",
            "options": ["red", "blue as the sea", "green", "grey"][: 2 + number % 3],
            "answer": number % 2,
        }
        for number in range(NUM_QUESTIONS)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tools.py").write_text(LOADER)
    texts = {
        "colours": CHOICES,
        "numbers": CHOICES.replace("task: colours", "task: numbers").replace("Answer:", "Is it:"),
        "sentences": TEXT,
        "completions": FREE,
        "programs": UNSAFE,
        "broken": BROKEN,
        "both": GROUP,
    }
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder
