"""Run under transformers 4: loads written directories and says what they answer.

Usage: python old_reader.py QUESTION.json ANSWERS.safetensors. The question holds `folders` by name, the `input_ids` of
each, and a `text` for each that has a tokenizer; the answers are `NAME.logits`, and `NAME.tokens` of the text.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.no_grad()
def main(question_file, answers_file):
    assert transformers.__version__.startswith("4."), transformers.__version__
    question = json.loads(Path(question_file).read_text(encoding="utf-8"))
    answers = {}
    for name, folder in question["folders"].items():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        answers[f"{name}.logits"] = model(input_ids=torch.tensor(question["input_ids"][name]), use_cache=False).logits
        tokens = AutoTokenizer.from_pretrained(folder)(question["text"], return_tensors="pt")["input_ids"]
        answers[f"{name}.tokens"] = tokens.contiguous()
    save_file(answers, answers_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
