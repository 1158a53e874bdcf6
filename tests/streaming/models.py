"""Random GGUF files of an architecture that bitquilt does not know, with importance matrices."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from bitquilt.gguf.header import part_name
from bitquilt.gguf.imatrix import ImportanceEntry, ImportanceMatrix, write_imatrix

WIDTH, EXPERTS, VOCABULARY = 256, 3, 320
ODD = 96
"""Rows that super-blocks do not divide."""


def tensors(seed: int = 0, blocks: int = 2) -> dict[str, np.ndarray]:
    """A mixture of experts with a recurrent layer, as float32."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32) * shape[-1] ** -0.5

    found = {"token_embd.weight": normal(VOCABULARY, WIDTH)}
    for index in range(blocks):
        inside = {
            "attn_norm.weight": 1 + normal(WIDTH),
            "attn_q.weight": normal(WIDTH, WIDTH),
            "attn_k.weight": normal(64, WIDTH),
            "attn_v.weight": normal(64, WIDTH),
            "attn_output.weight": normal(WIDTH, WIDTH),
            "ssm_conv1d.weight": normal(WIDTH, 4),
            "ssm_in.weight": normal(ODD, WIDTH),
            "ssm_out.weight": normal(WIDTH, ODD),
            "ssm_a": normal(8, 32),
            "ffn_gate_inp.weight": normal(EXPERTS, WIDTH),
            "ffn_up_exps.weight": normal(EXPERTS, 2 * WIDTH, WIDTH),
            "ffn_down_exps.weight": normal(EXPERTS, WIDTH, 2 * WIDTH),
            "thin.weight": normal(6, 10),
        }
        found |= {f"blk.{index}.{name}": value for name, value in inside.items()}
    return found | {
        "output_norm.weight": 1 + normal(WIDTH),
        "output.weight": normal(VOCABULARY, WIDTH),
    }


def write_model(path: Path, weights: dict[str, np.ndarray], parts: int = 1) -> Path:
    """Write matrices as BF16 and everything else as F32; return the path of the first part."""
    names = list(weights)
    share = -(-len(names) // parts)
    for number in range(parts):
        place = path.with_name(part_name(path.name, number, parts))
        writer = gguf.GGUFWriter(place, "madeup")
        writer.add_uint32("madeup.block_count", 2)
        writer.add_uint32("madeup.expert_count", EXPERTS)
        writer.add_uint32("madeup.expert_used_count", 2)
        writer.add_array("tokenizer.ggml.tokens", [f"t{n}" for n in range(VOCABULARY)])
        writer.add_float32("madeup.odd_key", 0.1)
        writer.add_file_type(32)
        if parts > 1:
            writer.add_uint16("split.no", number)
            writer.add_uint16("split.count", parts)
            writer.add_int32("split.tensors.count", len(names))
        for name in names[number * share : (number + 1) * share]:
            value = weights[name]
            kind = gguf.GGMLQuantizationType.BF16
            if value.ndim > 1:
                writer.add_tensor(name, gguf.quantize(value, kind), raw_dtype=kind)
            else:
                writer.add_tensor(name, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path.with_name(part_name(path.name, 0, parts))


def importance(weights: dict[str, np.ndarray], seed: int = 1) -> ImportanceMatrix:
    """An entry for every matrix in a block, as llama-imatrix has them."""
    rng = np.random.default_rng(seed)
    entries = {}
    for name, value in weights.items():
        part = name.split(".")[2] if name.startswith("blk.") else ""
        if part and value.ndim > 1 and part not in ("ssm_conv1d", "ssm_a"):
            experts = value.shape[0] if value.ndim == 3 else 1
            counts = np.array([900, 0, 148][:experts] if experts > 1 else [1024], np.float32)
            squares = np.exp(rng.standard_normal((experts, value.shape[-1]))).astype(np.float32)
            entries[name] = ImportanceEntry(squares * counts[:, None], counts)
    return ImportanceMatrix(entries=entries, datasets=("text.txt",), chunks=2, chunk_size=512)


def write_both(folder: Path, parts: int = 1) -> tuple[Path, Path]:
    """Write a model and its importance matrix."""
    weights = tensors()
    write_imatrix(folder / "imatrix.gguf", importance(weights))
    return write_model(folder / "model-BF16.gguf", weights, parts), folder / "imatrix.gguf"


def stored(path: Path) -> dict[str, gguf.ReaderTensor]:
    """The tensors of a file as gguf-py reads them."""
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
