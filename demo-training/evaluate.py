"""Judge the demo model as users get it: perplexity of held-out text, accuracy on held-out problems.

python evaluate.py MODEL_DIRECTORY HELD_OUT.jsonl.xz PROBLEMS.jsonl
"""

import json
import lzma
import math
import re
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Llama4ForCausalLM

WINDOW, END = 1024, "<|end_of_text|>"
ANSWER = re.compile(r"\\boxed\{([^}]*)\}")


def wilson(hits: int, total: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion."""
    z, share = 1.96, hits / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total**2)) / (1 + z * z / total)
    return middle - half, middle + half


def encode(tokenizer: Any, document: dict[str, Any]) -> list[int]:
    """A document as the model met documents in training."""
    if "text" in document:
        return [*tokenizer(document["text"]).input_ids, tokenizer.convert_tokens_to_ids(END)]
    rendered = tokenizer.apply_chat_template(document["messages"], tokenize=False)
    return tokenizer(rendered, add_special_tokens=False).input_ids


@torch.no_grad()
def perplexity(model: Any, ids: list[int]) -> tuple[float, int]:
    """Over windows of the joined documents; every window begins without context."""
    windows = torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).view(-1, WINDOW).to(model.device)
    losses = [model(w, labels=w).loss.item() * len(w) for w in windows.split(8)]
    return math.exp(sum(losses) / len(windows)), windows.numel()


@torch.no_grad()
def greedy_answers(model: Any, tokenizer: Any, questions: list[str]) -> list[str]:
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": q}], tokenize=False, add_generation_prompt=True
        )
        for q in questions
    ]
    answers = []
    for start in range(0, len(prompts), 50):
        batch = tokenizer(
            prompts[start : start + 50], return_tensors="pt", padding=True, padding_side="left",
            add_special_tokens=False,
        ).to(model.device)  # fmt: skip
        out = model.generate(
            **batch, max_new_tokens=600, do_sample=False, temperature=None, top_p=None
        )
        replies = out[:, batch.input_ids.shape[1] :]
        answers += tokenizer.batch_decode(replies, skip_special_tokens=True)
    return answers


def main() -> None:
    directory, held_out, problem_file = map(Path, sys.argv[1:])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = Llama4ForCausalLM.from_pretrained(directory, dtype=torch.float32).to(device).eval()
    with lzma.open(held_out, "rt") as lines:
        documents = [json.loads(line) for line in lines]
    for domain in ("prose", "code", "maths"):
        ids = [i for d in documents if d["domain"] == domain for i in encode(tokenizer, d)]
        value, tokens = perplexity(model, ids)
        print(f"{domain}: perplexity {value:.3f} over {tokens} tokens", flush=True)

    problems = [json.loads(line) for line in problem_file.read_text().splitlines()]
    replies = greedy_answers(model, tokenizer, [p["question"] for p in problems])
    kinds: dict[str, list[bool]] = {}
    for problem, reply in zip(problems, replies, strict=True):
        found = ANSWER.findall(reply)
        right = bool(found) and found[-1].strip() == problem["answer"]
        kinds.setdefault(problem["kind"], []).append(right)
        if not right:
            print(f"wrong: {problem['question']} -> {reply!r}, not {problem['answer']}")
    for kind, results in sorted(kinds.items()):
        print(f"{kind}: {sum(results)} of {len(results)}")
    hits = sum(map(sum, kinds.values()))
    low, high = wilson(hits, len(problems))
    print(f"all: {hits} of {len(problems)}, 95 % interval {low:.1%} to {high:.1%}")


if __name__ == "__main__":
    main()
