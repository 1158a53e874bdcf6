"""MobileLLM-R1-950M's shape with random weights: time and memory of the whole way, GGUF.

    python benchmarks/shape_950m.py [BITS]

Random weights say nothing about quality; sizes, seconds and memory are those of the real model.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from lib.timed import BITQUILT, run
from safetensors.torch import save_file
from transformers import AutoTokenizer

from bitquilt import demo

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "examples" / "mobilellm-r1-950m" / "config.json"


def main() -> None:
    """Make the checkpoint, quantize it, print what it cost."""
    bits = sys.argv[1] if len(sys.argv) > 1 else "4.5"
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory) / "MobileLLM-R1-950M-random"
        write_random(model)
        cost = run(BITQUILT, "quantize", str(model), "--bits", bits, "-o", directory)
        print(cost.stdout, f"950M shape to {bits} bits: {cost}", sep="\n")


def write_random(model: Path) -> None:
    """A checkpoint of that shape; the demo model's tokenizer, its vocabulary filled up."""
    shutil.copytree(demo.path(), model, ignore=shutil.ignore_patterns("*.safetensors", "config*"))
    config = json.loads(CONFIG.read_text())
    (model / "config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(demo.path())
    missing = config["vocab_size"] - len(tokenizer)
    tokenizer.add_tokens([f"<|filler_{i}|>" for i in range(missing)], special_tokens=True)
    tokenizer.save_pretrained(model)
    generator = torch.Generator().manual_seed(0)
    save_file(
        {
            name: torch.randn(shape, generator=generator, dtype=torch.bfloat16) * shape[-1] ** -0.5
            if len(shape) == 2
            else torch.ones(shape, dtype=torch.bfloat16)
            for name, shape in tensors(config).items()
        },
        model / "model.safetensors",
        metadata={"format": "pt"},
    )


def tensors(config: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a dense Llama 4 checkpoint as published."""
    width, heads, kv = (
        config[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    head, mlp = config["head_dim"], config["intermediate_size_mlp"]
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (config["vocab_size"], width)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"layers.{layer}."
        shapes |= {
            f"{prefix}self_attn.q_proj": (heads * head, width),
            f"{prefix}self_attn.k_proj": (kv * head, width),
            f"{prefix}self_attn.v_proj": (kv * head, width),
            f"{prefix}self_attn.o_proj": (width, heads * head),
            f"{prefix}feed_forward.gate_proj": (mlp, width),
            f"{prefix}feed_forward.up_proj": (mlp, width),
            f"{prefix}feed_forward.down_proj": (width, mlp),
            f"{prefix}input_layernorm": (width,),
            f"{prefix}post_attention_layernorm": (width,),
        }
    shapes["norm"] = (width,)
    return {f"model.{name}.weight": shape for name, shape in shapes.items()}


if __name__ == "__main__":
    main()
