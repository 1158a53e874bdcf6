"""Made bitsandbytes.safetensors, with bitsandbytes 0.50.2 on a CPU: python make_bitsandbytes.py.

Matrices that it quantized, under the names that transformers gives their parts, and as
``wanted.NAME`` what its own functions make of them again.
"""

import bitsandbytes.functional as bnb
import torch
from safetensors.torch import save_file

torch.manual_seed(0)
found = {}
for name, kind, nested in (("plain", "nf4", False), ("nested", "nf4", True), ("fp4", "fp4", False)):
    weight = torch.randn(24, 64) * 0.02
    codes, state = bnb.quantize_4bit(weight, quant_type=kind, compress_statistics=nested)
    found[f"{name}.weight"] = codes
    found |= {f"{name}.weight.{part}": t for part, t in state.as_dict(packed=True).items()}
    found[f"wanted.{name}"] = bnb.dequantize_4bit(codes, state)
codes, scales, _ = bnb.int8_vectorwise_quant((torch.randn(24, 64) * 0.02).half())
found |= {"eight.weight": codes, "eight.SCB": scales}
found["eight.weight_format"] = torch.tensor(0, dtype=torch.uint8)
found["wanted.eight"] = bnb.int8_vectorwise_dequant(codes, scales)
save_file({name: t.contiguous() for name, t in found.items()}, "bitsandbytes.safetensors")
