"""Ask llama.cpp itself which type it gives each tensor, and write the answers down.

Runs ``llama_model_quantize`` (through ``pip install llama-cpp-python``, which bitquilt itself does
not need) on tiny GGUF files that have the width, depth and head counts of real models, and writes
``llama_quantize_types.json``: model → preset → role → types of the blocks, run-length encoded.

    python tests/allocation/data/make_llama_quantize_types.py
"""

import ctypes
import itertools
import json
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

FTYPES = {
    "Q4_0": 2,
    "Q8_0": 7,
    "Q2_K": 10,
    "Q3_K_S": 11,
    "Q3_K_M": 12,
    "Q3_K_L": 13,
    "Q4_K_S": 14,
    "Q4_K_M": 15,
    "Q5_K_S": 16,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "IQ4_NL": 25,
    "IQ4_XS": 30,
}
"""llama.h's ``enum llama_ftype``."""

MODELS = {
    # llama.cpp's name, layers, heads, KV heads, head size, width, MLP width, tied
    "MobileLLM-R1-140M": ("qwen3", 15, 9, 3, 64, 576, 2048, True),
    "MobileLLM-R1-950M": ("qwen3", 22, 24, 6, 64, 1536, 6144, True),
    "gemma-3-270m": ("gemma3", 18, 4, 1, 256, 640, 2048, True),
    "Llama-3.1-8B": ("llama", 32, 32, 8, 128, 4096, 14336, False),
    "Llama-3.1-70B": ("llama", 80, 64, 8, 128, 8192, 28672, False),
    "Qwen1.5-72B": ("qwen2", 80, 64, 64, 128, 8192, 24576, False),
    "six odd layers": ("llama", 6, 4, 4, 72, 288, 800, False),
}

ROWS = 2
"""llama.cpp takes a tensor of one row for a vector and leaves it alone."""


def write_model(path: Path, model: str) -> None:
    """A GGUF file with the model's hyperparameters and row lengths, and next to no rows."""
    arch, layers, heads, kv_heads, head_dim, width, mlp, tied = MODELS[model]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(layers)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(mlp)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_sliding_window(32)
    writer.add_vocab_size(ROWS)
    columns = {"token_embd": width} | ({} if tied else {"output": width})
    for layer in range(layers):
        for role in ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"):
            columns[f"blk.{layer}.{role}"] = width
        columns[f"blk.{layer}.attn_output"] = heads * head_dim
        columns[f"blk.{layer}.ffn_down"] = mlp
    for name, count in columns.items():
        writer.add_tensor(f"{name}.weight", np.ones((ROWS, count), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def importance() -> ctypes.Array:
    """An importance matrix that weighs nothing: its presence alone changes some choices."""
    values = (ctypes.c_float * 1)(1.0)
    entries = (llama_cpp.llama_model_imatrix_data * 2)()
    entries[0].name, entries[0].data, entries[0].size = b"none", values, 1
    return entries


def quantized_types(source: Path, target: Path, preset: str) -> dict[str, str]:
    """The type of every matrix after ``llama-quantize --imatrix`` to that preset."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FTYPES[preset]
    params.imatrix = importance()
    params.nthread = 1
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params)
    if status != 0:
        raise RuntimeError(f"llama_model_quantize returned {status} for {preset}")
    tensors = gguf.GGUFReader(target).tensors
    return {t.name.removesuffix(".weight"): t.tensor_type.name for t in tensors}


def by_role(types: dict[str, str], layers: int) -> dict[str, str]:
    """``{"attn_v": "Q6_K*2 Q4_K*13", …}``: each role's types, block by block."""
    roles = {name.split(".")[-1]: name for name in types}
    table = {}
    for role, example in roles.items():
        inside = example.startswith("blk.")
        names = [f"blk.{layer}.{role}" for layer in range(layers)] if inside else [role]
        runs = itertools.groupby(types[name] for name in names)
        table[role] = " ".join(f"{qtype}*{len(list(run))}" for qtype, run in runs)
    return table


def main() -> None:
    """Write the table beside this script."""
    tables: dict[str, dict[str, dict[str, str]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source.gguf"), Path(folder, "target.gguf")
        for model, (_, layers, *_rest) in MODELS.items():
            write_model(source, model)
            tables[model] = {
                preset: by_role(quantized_types(source, target, preset), layers)
                for preset in FTYPES
            }
    answer = {
        "llama-cpp-python": llama_cpp.__version__,
        "models": {
            name: {
                "architecture": arch,
                **dict(zip(SHAPE, shape, strict=True)),
                "types": tables[name],
            }
            for name, (arch, *shape) in MODELS.items()
        },
    }
    text = json.dumps(answer, indent=1)
    Path(__file__).with_name("llama_quantize_types.json").write_text(text + "\n")


SHAPE = ("layers", "heads", "kv_heads", "head_dim", "width", "mlp", "tied")


if __name__ == "__main__":
    main()
