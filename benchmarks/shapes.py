"""Large shapes with random weights: time, memory and disk of the whole way, stage by stage.

    python benchmarks/shapes.py NAME [--bits BITS]... [--to gguf|mlx|both] [--layers N] [--dir DIR]
        [--search METHOD]

Names are those of ``SHAPES``. Random weights say nothing about quality; seconds, bytes and memory
are those of the real model. How busy GPUs were in each stage is what ``nvidia-smi`` says.
``--layers`` makes a model of fewer blocks, to see what one takes; with ``--search knapsack`` it
goes the way that many blocks would.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lib.gpu_activity import WatchedStages, activity_watched
from lib.timed import MAXRSS_UNIT
from safetensors.torch import save_file

import bitquilt
from bitquilt import demo
from bitquilt.streaming.base import needs_base

ROOT = Path(__file__).parents[1]
MOBILELLM_CONFIG = ROOT / "examples" / "mobilellm-r1-950m" / "config.json"
SAMPLED = 0.2
"""Seconds between two looks at the disk."""

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-05,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": False,
}
MAGISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 5120,
    "intermediate_size": 32768,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 131072,
    "rms_norm_eps": 1e-05,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rope_theta": 1000000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
}
QWEN3_4B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-06,
    "hidden_act": "silu",
    "max_position_embeddings": 40960,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
}
QWEN3_30B_A3B = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-06,
    "hidden_act": "silu",
    "max_position_embeddings": 40960,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
}
SHAPES: dict[str, dict[str, Any]] = {
    "MobileLLM-R1-950M": json.loads(MOBILELLM_CONFIG.read_text()),
    "Qwen3-4B": QWEN3_4B,
    "Llama-3.1-8B": LLAMA_8B,
    "Magistral-Small": MAGISTRAL,
    "Qwen3-30B-A3B": QWEN3_30B_A3B,
}


def main() -> None:
    """Make the checkpoint, quantize it, print what it cost."""
    asked = arguments()
    with tempfile.TemporaryDirectory(dir=asked.dir) as directory:
        model = Path(directory) / f"{asked.name}-random"
        started = time.monotonic()
        write_random(model, asked.name, asked.layers)
        source = used(model)
        print(f"Random weights: {source / 1e9:.1f} GB, {time.monotonic() - started:.0f} s")
        started = time.monotonic()
        progress = WatchedStages()
        with disk_watched(Path(directory)) as most, activity_watched(progress):
            results = quantized(model, asked, progress)
        seconds = time.monotonic() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT
        print(f"{asked.name}, {asked.bits} bits, {asked.to}: {seconds:.0f} s")
        print(f"memory {peak / 1e9:.1f} GB", end="")
        if torch.cuda.is_available():
            print(f", of the GPU {torch.cuda.max_memory_reserved() / 1e9:.1f} GB", end="")
        print(f"; disk {(most[0] - source) / 1e9:.1f} GB at most beside the source", end="")
        print(f"; the results, which come last, have {results / 1e9:.1f} GB")


def quantized(model: Path, asked: argparse.Namespace, progress: WatchedStages) -> int:
    """Quantize it in the way that its type goes; the bytes of the files that were made."""
    options: dict[str, Any] = {
        "progress": progress,
        "bits": tuple(asked.bits),
        "to": asked.to,
        "output": model.parent,
        "engine_check": False,
    }
    if needs_base(model):
        return sum(made.plan.nbytes for made in bitquilt.quantize_base(model, **options))
    search = bitquilt.SearchConfig(method=asked.search)
    made = bitquilt.quantize(model, search=search, **options)
    return sum(output.nbytes for output in made.outputs)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", nargs="?", choices=SHAPES, default="MobileLLM-R1-950M")
    parser.add_argument("--bits", type=float, action="append")
    parser.add_argument("--to", default="gguf")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--dir")
    parser.add_argument("--search", choices=("race", "knapsack"), default="race")
    asked = parser.parse_args()
    asked.bits = asked.bits or [4.5]
    return asked


def write_random(model: Path, name: str = "MobileLLM-R1-950M", layers: int | None = None) -> None:
    """A checkpoint of a shape, a file for each block; the demo model's tokenizer serves."""
    config = dict(SHAPES[name])
    config["num_hidden_layers"] = layers or config["num_hidden_layers"]
    shutil.copytree(demo.path(), model, ignore=shutil.ignore_patterns("*.safetensors", "config*"))
    (model / "config.json").write_text(json.dumps(config))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    files: dict[str, dict[str, torch.Tensor]] = {}
    places = {}
    for tensor, shape in tensors(config).items():
        parts = tensor.split(".")
        file = f"model-{parts[2] if parts[1] == 'layers' else 'ends'}.safetensors"
        files.setdefault(file, {})[tensor] = torch.empty(shape, device="meta")
        places[tensor] = file
    for file, own in files.items():
        made = {
            tensor: _weights(tuple(empty.shape), generator, device) for tensor, empty in own.items()
        }
        save_file(made, model / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": places}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def _weights(shape: tuple[int, ...], generator: torch.Generator, device: str) -> torch.Tensor:
    """Norms of ones, and matrices that keep the size of what they multiply."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    drawn = torch.randn(shape, generator=generator, dtype=torch.bfloat16, device=device)
    return (drawn * shape[-1] ** -0.5).cpu()


def tensors(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint as published: experts one by one."""
    width, heads, kv = (
        config[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    head, old = config["head_dim"], config["model_type"] == "llama4_text"
    mlp = config["intermediate_size_mlp" if old else "intermediate_size"]
    feed = "feed_forward" if old else "mlp"
    experts = config.get("num_experts", 0)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (config["vocab_size"], width)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}self_attn.q_proj": (heads * head, width),
            f"{prefix}self_attn.k_proj": (kv * head, width),
            f"{prefix}self_attn.v_proj": (kv * head, width),
            f"{prefix}self_attn.o_proj": (width, heads * head),
            f"{prefix}input_layernorm": (width,),
            f"{prefix}post_attention_layernorm": (width,),
        }
        if "qwen3" in config["model_type"]:
            shapes |= {f"{prefix}self_attn.{one}_norm": (head,) for one in "qk"}
        if experts:
            shapes[f"{prefix}{feed}.gate"] = (experts, width)
            mlp = config["moe_intermediate_size"]
        own = [f"{feed}.experts.{number}" for number in range(experts)] or [feed]
        for one in own:
            shapes |= {
                f"{prefix}{one}.gate_proj": (mlp, width),
                f"{prefix}{one}.up_proj": (mlp, width),
                f"{prefix}{one}.down_proj": (width, mlp),
            }
    shapes["model.norm"] = (width,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head"] = (config["vocab_size"], width)
    return {f"{name}.weight": shape for name, shape in shapes.items()}


def used(folder: Path) -> int:
    """The bytes of all files of a folder, those that are being written too."""
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:  # renamed meanwhile
            continue
    return total


@contextmanager
def disk_watched(folder: Path) -> Iterator[list[int]]:
    """Keep the most bytes that a folder ever has in a list of one."""
    most, over = [used(folder)], threading.Event()

    def look() -> None:
        while not over.wait(SAMPLED):
            most[0] = max(most[0], used(folder))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield most
    finally:
        over.set()
        watcher.join()


if __name__ == "__main__":
    sys.exit(main())
