"""Run in a fresh process that has vLLM: loads a written model and answers what it is asked.

Imports neither depthcut nor anything that vLLM does not bring. One process, eager: compiling takes longer than asking.
Usage: python -P vllm_check.py DIRECTORY QUESTION.json; prints one line of JSON.
"""

import json
import os
import sys
from pathlib import Path


def main(directory: str, question_file: str) -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM, SamplingParams  # reads the variables above

    question = json.loads(Path(question_file).read_text(encoding="utf-8"))
    ids, num_new = question["input_ids"], question["greedy_tokens"]
    model = LLM(
        model=directory,
        dtype=question["dtype"],
        max_model_len=len(ids) + num_new,
        max_num_seqs=1,
        gpu_memory_utilization=0.4,  # the model in memory may be on the same GPU
        enforce_eager=True,
        trust_remote_code=True,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
    )
    sampling = SamplingParams(temperature=0, max_tokens=num_new, ignore_eos=True, prompt_logprobs=0, detokenize=False)
    output = model.generate({"prompt_token_ids": ids}, sampling, use_tqdm=False)[0]
    nats = [entry[token].logprob for token, entry in zip(ids[1:], output.prompt_logprobs[1:], strict=True)]
    print(json.dumps({"loss": -sum(nats) / len(nats), "greedy": list(output.outputs[0].token_ids)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
