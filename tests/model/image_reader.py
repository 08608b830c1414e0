"""Run in a fresh process, `image_reader.py DIRECTORY INPUTS OUT`: a written model's logits on an image with text."""

import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

directory, inputs, out = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
with torch.no_grad():
    logits = model(**load_file(inputs)).logits
save_file({"logits": logits.contiguous()}, out)
