"""Train the demo model on one GPU: half text, half freshly generated problems.

Time, not steps, drives the schedule: a call trains for `--seconds` and moves through the part of
the schedule from `--begin` to `--end`, so a run can be cut into calls that a time limit allows.

    python train.py DATA OUT --seconds 420 --begin 0 --end 0.45
    python train.py DATA OUT --seconds 480 --begin 0.45 --end 1 --length 2048   # goes on from OUT
"""

import argparse
import json
import lzma
import math
import multiprocessing as mp
import os
import random
import time
from pathlib import Path

import numpy as np
import torch
from conversations import conversation, render
from model import Model, save
from tokenizers import Tokenizer
from torch import Tensor

PEAK_RATE, WEIGHT_DECAY = 4e-3, 0.05
WARM_UP, DECAY_FROM = 0.01, 0.5
TOKENS_A_STEP = 128 * 1024


def learning_rate(progress: float) -> float:
    """Warm up, hold, then fall linearly to a hundredth."""
    if progress < WARM_UP:
        return PEAK_RATE * progress / WARM_UP
    return PEAK_RATE * min(1.0, max(0.01, (1 - progress) / (1 - DECAY_FROM)))


# ------------------------------------------------------------------------------------ data


def encode_documents(data: Path, texts: list[str]) -> np.ndarray:
    tokenizer = Tokenizer.from_file(str(data / "tokenizer.json"))
    end = tokenizer.token_to_id("<|end_of_text|>")
    encoded = tokenizer.encode_batch(texts)
    return np.concatenate([np.array([*e.ids, end], dtype=np.uint16) for e in encoded])


def text_tokens(data: Path, device: str) -> tuple[Tensor, Tensor]:
    """Training and held-out text as two streams of token ids."""
    streams: dict[str, list[np.ndarray]] = {"train": [], "held-out": []}
    with lzma.open(data / "corpus.jsonl.xz", "rt") as lines:
        documents = [json.loads(line) for line in lines]
    random.Random(0).shuffle(documents)
    for split, stream in streams.items():
        texts = [d["text"] for d in documents if d["split"] == split]
        for start in range(0, len(texts), 500):
            stream.append(encode_documents(data, texts[start : start + 500]))
    return tuple(
        torch.from_numpy(np.concatenate(s).astype(np.int32)).to(device) for s in streams.values()
    )


def make_problems(data: Path, length: int, seed: int, queue: mp.Queue) -> None:
    """Fill the queue with rows of packed conversations, never a held-out question."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = Tokenizer.from_file(str(data / "tokenizer.json"))
    excluded = frozenset(json.loads((data / "excluded.json").read_text()))
    rng = random.Random(seed)
    rest = np.empty(0, dtype=np.uint16)
    while True:
        texts = [render(conversation(rng, excluded)) for _ in range(512)]
        encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
        stream = np.concatenate([rest, *(np.array(e.ids, dtype=np.uint16) for e in encoded)])
        rows = len(stream) // (length + 1)
        queue.put(stream[: rows * (length + 1)].reshape(rows, length + 1))
        rest = stream[rows * (length + 1) :]


class Batches:
    """Rows of T + 1 tokens, half from the text, half from the queue of problems."""

    def __init__(self, text: Tensor, queue: mp.Queue, length: int) -> None:
        self.text, self.queue, self.length = text, queue, length
        self.rows = TOKENS_A_STEP // length
        self.problems = np.empty((0, length + 1), dtype=np.uint16)
        self.offsets = torch.arange(length + 1, device=text.device)

    def next(self) -> tuple[Tensor, Tensor]:
        half = self.rows // 2
        while len(self.problems) < half:
            self.problems = np.concatenate([self.problems, self.queue.get()])
        made, self.problems = self.problems[:half], self.problems[half:]
        problems = torch.from_numpy(made.astype(np.int32)).to(self.text.device)
        starts = torch.randint(
            len(self.text) - self.length, (self.rows - half, 1), device=self.text.device
        )
        rows = torch.cat((self.text[starts + self.offsets], problems)).long()
        return rows[:, :-1], rows[:, 1:]


# ------------------------------------------------------------------------------- optimizer


@torch.compile(dynamic=False)
def orthogonalize(updates: Tensor) -> Tensor:
    """Newton-Schulz: the nearest matrices with all singular values near one; [N, rows, columns]."""
    x = updates.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Muon:
    """Momentum whose update is orthogonalized, for the matrices; equal shapes go together."""

    def __init__(self, matrices: list[Tensor], momentum: float = 0.95) -> None:
        self.momentum = momentum
        self.groups: list[list[Tensor]] = []
        for shape in sorted({m.shape for m in matrices}):
            self.groups.append([m for m in matrices if m.shape == shape])
        self.buffers = [torch.zeros(len(g), *g[0].shape, device=g[0].device) for g in self.groups]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for group, buffer in zip(self.groups, self.buffers, strict=True):
            gradient = torch.stack([m.grad for m in group])
            buffer.lerp_(gradient, 1 - self.momentum)
            update = orthogonalize(gradient.lerp(buffer, self.momentum)).float()
            # the size of an AdamW update, so both optimizers share one learning rate
            scale = 0.2 * math.sqrt(max(buffer.shape[1:])) * rate
            torch._foreach_mul_(group, 1 - rate * WEIGHT_DECAY)
            torch._foreach_add_(group, list(update.unbind()), alpha=-scale)


# -------------------------------------------------------------------------------- training


@torch.no_grad()
def held_out_loss(model: Model, text: Tensor, length: int, device: str) -> float:
    """Mean loss over windows of `length`, in batches of the training's shape."""
    rows = TOKENS_A_STEP // length
    starts = torch.arange(0, len(text) - length, length, device=device)
    offsets = torch.arange(length + 1, device=device)
    losses = []
    for chunk in starts.split(rows):
        windows = text[chunk[:, None] + offsets].long()
        with torch.autocast(device, torch.bfloat16):
            loss = model.loss(windows[:, :-1], windows[:, 1:])
        losses.append(loss.item() * len(chunk))
    return sum(losses) / len(starts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--begin", type=float, default=0.0)
    parser.add_argument("--end", type=float, default=1.0)
    parser.add_argument("--length", type=int, default=1024)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(int(args.begin * 1000))
    context = mp.get_context("spawn")
    queue = context.Queue(maxsize=64)
    for worker in range(max(1, (os.cpu_count() or 2) - 2)):
        seed = 1 + worker + int(args.begin * 1e6)
        context.Process(
            target=make_problems, args=(args.data, args.length, seed, queue), daemon=True
        ).start()
    text, held_out = text_tokens(args.data, device)
    batches = Batches(text, queue, args.length)

    model = Model().to(device)
    matrices = [w for w in model.layers.parameters() if w.dim() == 2]
    others = [w for w in model.parameters() if not any(w is m for m in matrices)]
    muon = Muon(matrices)
    adam = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0, fused=device == "cuda")
    state_file = args.out / "state.pt"
    if args.begin > 0:
        state = torch.load(state_file, map_location=device)
        model.load_state_dict(state["model"])
        adam.load_state_dict(state["adam"])
        muon.buffers = state["muon"]
    torch.set_float32_matmul_precision("high")
    for layer in model.layers:  # one compilation for all layers
        layer.compile()
    print(f"{len(text) / 1e6:.1f}M text tokens, {len(held_out) / 1e3:.0f}k held out", flush=True)

    begun, step, tokens, mean = time.time(), 0, 0, None
    while (elapsed := time.time() - begun) < args.seconds:
        progress = args.begin + (args.end - args.begin) * elapsed / args.seconds
        rate = learning_rate(progress)
        ids, targets = batches.next()
        with torch.autocast(device, torch.bfloat16):
            loss = model.loss(ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step(rate)
        for group in adam.param_groups:
            group["lr"] = rate
        adam.step()
        model.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + ids.numel()
        if step % 50 == 0 or device == "cpu":
            value = loss.item()
            mean = value if mean is None else 0.8 * mean + 0.2 * value
            print(
                f"{elapsed:5.0f} s  step {step:5d}  {tokens / 1e6:6.1f}M  loss {mean:.4f}  "
                f"rate {rate:.5f}  {tokens / max(elapsed, 1e-9) / 1e3:.0f}k tokens/s  "
                f"queue {queue.qsize()}",
                flush=True,
            )
    text_loss = held_out_loss(model, held_out, args.length, device)
    print(f"done: {step} steps, {tokens / 1e6:.1f}M tokens, held-out text loss {text_loss:.4f}")
    save(model, args.out)
    state = {"model": model.state_dict(), "adam": adam.state_dict(), "muon": muon.buffers}
    torch.save(state, state_file)


if __name__ == "__main__":
    main()
