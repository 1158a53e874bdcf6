"""The blocks of a model on one type as AutoRound rounds them, decoded.

It tunes the rounding and the range of every weight group of a block together, by signed gradients
of the block's output error; each block reads what the rounded ones before it give.
Source: intel/auto-round 0.16.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from bitquilt.engines.torch import transformers_model
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.qtypes.qtype import Packed, QuantType

SCHEMES: dict[str, Any] = {
    **{f"{bits}bit-g64": {"bits": bits, "group_size": 64, "sym": False} for bits in (2, 3, 4)},
    **{f"Q{bits}_K": f"GGUF:Q{bits}_K_S" for bits in (2, 3, 4, 5)},
    "Q6_K": "GGUF:Q6_K",
}
"""Type → the scheme of one layer that is the same."""


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
    from auto_round import AutoRound

    logging.getLogger("autoround").setLevel(logging.ERROR)
    model = transformers_model(checkpoint)
    blocks = [module for module in checkpoint.matrices if module.startswith("model.layers")]
    tuner = AutoRound(
        model,
        AutoTokenizer.from_pretrained(checkpoint.tokenizer_dir),
        # A GGUF scheme for the whole model would give some matrices more bits, as Q4_K_S does.
        layer_config=dict.fromkeys(blocks, SCHEMES[qtype.name]),
        scale_dtype="fp16" if "mlx" in qtype.targets else "fp32",  # its default for either file
        dataset=list(tokens.split(1)),
        nsamples=len(tokens),
        seqlen=tokens.shape[1],
        iters=steps,
        amp=False,  # bfloat16 saves time on a GPU, and rounds every weight once more
        enable_alg_ext="mlx" in qtype.targets,  # better by its own tables; takes no K-quants
        enable_torch_compile=False,  # needs a C++ compiler; a fifth of the time, its log says
    )
    tuner.quantize()
    pack = _mlx if "mlx" in qtype.targets else _gguf
    return {module: qtype.dequantize(pack(model, module, qtype)) for module in blocks}


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
