"""Run in a fresh process, `image_reader.py DIRECTORY INPUTS OUT`: a written model's logits on an image with text."""

import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText


@torch.no_grad()
def main(directory: str, inputs: str, out: str) -> None:
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
    save_file({"logits": model(**load_file(inputs)).logits.contiguous()}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
