"""A model as AutoRound rounds it, decoded: all blocks on one type, or on the mix of its AutoScheme.

It tunes the rounding and the range of every weight group of a block together, by signed gradients
of the block's output error; each block reads what the rounded ones before it give. AutoScheme
scores the types of every matrix by gradients, and takes the best mix of a number of bits.
Source: intel/auto-round 0.16.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from bitquilt import qtypes
from bitquilt.engines.torch import transformers_model
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.qtypes.qtype import Allocation, Packed, QuantType

SCHEMES: dict[str, Any] = {
    **{
        f"{bits}bit-g64": {"bits": bits, "group_size": 64, "sym": False, "data_type": "int"}
        for bits in (2, 3, 4)
    },
    **{f"Q{bits}_K": f"GGUF:Q{bits}_K_S" for bits in (2, 3, 4, 5)},
    "Q6_K": "GGUF:Q6_K",
}
"""Type → the scheme of one layer that is the same."""
KQUANTS = {name: scheme for name, scheme in SCHEMES.items() if name.endswith("_K")}
MLX_SCALES, GGUF_SCALES = "fp16", "fp32"
"""Its defaults for either file."""
SCORED = 16
"""Windows that AutoScheme reads; its own default."""


def installed() -> bool:
    """Tell whether AutoRound can be imported."""
    return find_spec("auto_round") is not None


def rounded(
    checkpoint: Checkpoint, qtype: QuantType, tokens: Tensor, steps: int = 200
) -> dict[str, Tensor]:
    """Return module path → float32 [R, C] for every block's matrices, as AutoRound's file has them.

    Args:
        checkpoint: rounded with its embedding as it is, which AutoRound does not tune.
        qtype: one of ``SCHEMES``.
        tokens: int64 [N, L] to tune on.
        steps: for each block; 200 is AutoRound's own default, as is all that is not given here.
    """
    layer = SCHEMES[qtype.name]
    whole, scales = layer, MLX_SCALES
    if qtype.name in KQUANTS:
        whole, scales = _whole(qtype.name), GGUF_SCALES
    blocks = [module for module in checkpoint.matrices if module.startswith("model.layers")]
    layers = dict.fromkeys(blocks, layer)
    with _model(checkpoint) as model:
        tuner = _tuner(checkpoint, model, whole, tokens, steps, layers, scales)
        tuner.quantize()
        return {module: _decoded(model, module, qtype) for module in blocks}


def mixed(
    checkpoint: Checkpoint, bits: float, tokens: Tensor, steps: int = 200
) -> tuple[Allocation, dict[str, Tensor]]:
    """Return AutoScheme's mix of K-quants, and the matrices of its blocks as in :func:`rounded`.

    Args:
        checkpoint: its embedding has a type in the mix and no matrix in the result.
        bits: of the codes, per weight. With those of scales AutoScheme counts 0.6 too many for
            Q3_K and Q6_K, and hardly takes them.
        tokens: int64 [N, L]; the first ``SCORED`` windows decide the mix, all of them tune.
        steps: for each block.
    """
    mix = _mix(checkpoint, bits, tokens)
    layers = {
        module: KQUANTS[name] for module, name in mix.items() if module.startswith("model.layers")
    }
    with _model(checkpoint) as model:
        tuner = _tuner(checkpoint, model, _whole("Q4_K"), tokens, steps, layers, GGUF_SCALES)
        tuner.quantize()
        return mix, {module: _decoded(model, module, qtypes.get(mix[module])) for module in layers}


def _mix(checkpoint: Checkpoint, bits: float, tokens: Tensor) -> Allocation:
    from auto_round import AutoScheme

    scheme = AutoScheme(
        bits,
        list(KQUANTS.values()),
        ignore_scale_zp_bits=True,
        nsamples=SCORED,
        seqlen=tokens.shape[1],
        low_gpu_mem_usage=False,
    )
    with _model(checkpoint) as model:
        # Scores of Q3_K and Q6_K write into weights that are float32 already, and all weights
        # would be others from then on.
        tuner = _tuner(checkpoint, model.bfloat16(), scheme, tokens, 0, None, GGUF_SCALES)
        tuner.post_init()
        found = tuner.layer_config
    return {module: f"Q{found[module]['bits']}_K" for module in checkpoint.matrices}


def _whole(name: str) -> dict[str, Any]:
    """Return a K-quant as the scheme of a whole model, which decides how its layers are tuned.

    By its name GGUF's own would give some matrices more bits, as Q4_K_S does. Bits of activations
    that are never rounded make it another one.
    """
    from auto_round.schemes import preset_name_to_scheme

    return {**asdict(preset_name_to_scheme(KQUANTS[name])), "act_bits": 32}


@contextmanager
def _model(checkpoint: Checkpoint) -> Iterator[torch.nn.Module]:
    """Have a model in memory that AutoRound finds on disk as well, as it wants for GGUF."""
    with tempfile.TemporaryDirectory() as directory:
        model = transformers_model(checkpoint)
        model.save_pretrained(directory)
        model.config._name_or_path = model.name_or_path = directory
        # where AutoScheme keeps scores; others of a model of the same name are in the usual place
        os.environ["AR_AUTO_SCHEME_CACHE"] = str(Path(directory) / "scores")
        yield model


def _tuner(
    checkpoint: Checkpoint,
    model: torch.nn.Module,
    scheme: Any,
    tokens: Tensor,
    steps: int,
    layers: dict[str, Any] | None,
    scales: str,
) -> Any:
    from auto_round import AutoRound
    from auto_round.calib_dataset import register_dataset
    from datasets import Dataset

    @register_dataset("calibration")
    def windows(tokenizer: object, seqlen: int, **rest: object) -> Dataset:
        """AutoScheme takes a data set by its name, and wants some of four times the length."""
        rows = tokens.flatten()[: tokens.numel() // seqlen * seqlen].reshape(-1, seqlen)
        return Dataset.from_dict(
            {"input_ids": rows.tolist(), "attention_mask": torch.ones_like(rows).tolist()}
        )

    logging.getLogger("autoround").setLevel(logging.ERROR)
    return AutoRound(
        model,
        AutoTokenizer.from_pretrained(checkpoint.tokenizer_dir),
        scheme=scheme,
        layer_config=layers,
        scale_dtype=scales,
        dataset="calibration",
        nsamples=len(tokens),
        seqlen=tokens.shape[1],
        iters=steps,
        amp=False,  # bfloat16 saves time on a GPU, and rounds every weight once more
        enable_alg_ext=True,  # better by its own tables
        enable_torch_compile=False,  # needs a C++ compiler; a fifth of the time, its log says
    )


def _decoded(model: torch.nn.Module, module: str, qtype: QuantType) -> Tensor:
    """Decode one tuned layer [R, C] from what its file would hold."""
    pack = _mlx if "mlx" in qtype.targets else _gguf
    return qtype.dequantize(pack(model, module, qtype))


def _mlx(model: torch.nn.Module, module: str, qtype: QuantType) -> Packed:
    """Pack one tuned layer as AutoRound's MLX export does."""
    from auto_round.export.export_to_mlx.export import pack_layer

    pack_layer(module, model, device="cpu")
    packed: Any = model.get_submodule(module)
    return {"weight": packed.weight, "scales": packed.scales, "biases": packed.biases}


def _gguf(model: torch.nn.Module, module: str, qtype: QuantType) -> Packed:
    """Pack one tuned layer as AutoRound's GGUF export does."""
    from auto_round.export.export_to_gguf.packing import ggml_quant

    layer: Any = model.get_submodule(module)
    mins = (
        {} if qtype.name in ("Q3_K", "Q6_K") else {"wmin": layer.w_wmin, "d_wmin": layer.w_d_wmin}
    )
    scales = {"scale": layer.scale, "d_scale": layer.w_d_scale, **mins}
    data = ggml_quant(layer.weight.detach(), qtype.name.lower(), device="cpu", **scales)
    return {"data": torch.from_numpy(data)}
