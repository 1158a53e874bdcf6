"""Looking types up, by name, by file format and by width."""

import pytest
import torch

from bitquilt import qtypes
from bitquilt.errors import UserError
from bitquilt.rounding.nearest import fit
from bitquilt.targets import TARGETS, Target


def test_names_come_by_bits() -> None:
    bits = [qtypes.get(name).bits for name in qtypes.names()]
    assert bits == sorted(bits)
    assert len(qtypes.names()) == 24 + 2 + 18 + 3


def test_targets_share_only_the_floats() -> None:
    assert set(qtypes.names("gguf")) & set(qtypes.names("mlx")) == {"BF16", "F32"}


@pytest.mark.parametrize("target", TARGETS.values(), ids=str)
def test_a_target_knows_the_bits_of_its_smallest_type(target: Target) -> None:
    assert qtypes.get(qtypes.names(target.name)[0]).bits == target.fewest_bits


def test_narrow_rows_take_only_small_blocks() -> None:
    """MobileLLM-R1-140M and SmolLM2-135M are 576 wide."""
    gguf = [qtype.name for qtype in qtypes.for_width(576, "gguf")]
    assert gguf == [
        *("Q2_0", "MXFP4", "Q4_0", "IQ4_NL", "NVFP4", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "F32")
    ]
    assert {qtype.block for qtype in qtypes.for_width(576, "mlx")} == {1, 16, 32, 64}


@pytest.mark.parametrize(
    ("asked", "nearest"), [("q4_k", "Q4_K"), ("Q4K_M", "Q4_K"), ("4bit-g63", "4bit-g64")]
)
def test_an_unknown_name_gets_the_nearest_and_the_choices(asked: str, nearest: str) -> None:
    with pytest.raises(
        UserError, match=rf"{asked!r}; did you mean {nearest}\? The types .*IQ4_XS.*mxfp4"
    ):
        qtypes.get(asked)


@pytest.mark.parametrize("name", qtypes.names())
def test_packing_and_decoding_stay_on_the_device_of_their_input(name: str) -> None:
    """The meta device refuses to meet a tensor of another one, as CUDA would."""
    qtype = qtypes.get(name)
    packed = qtype.pack(fit(qtype, torch.randn(2, 256), None))
    fields = qtype.unpack({part: tensor.to("meta") for part, tensor in packed.items()})
    assert all(tensor.device.type == "meta" for tensor in qtype.pack(fields).values())
    assert qtype.decode(fields).shape == (2, 256)


@pytest.mark.parametrize("name", ["BF16", "F32"])
def test_floats_are_plain_tensors(name: str) -> None:
    qtype = qtypes.get(name)
    weight = torch.randn(3, 7) * 1e-3
    packed = qtype.pack(fit(qtype, weight, None))
    dtype = {"BF16": torch.bfloat16, "F32": torch.float32}[name]
    assert torch.equal(packed["weight"], weight.to(dtype))
    assert packed["weight"].view(torch.uint8).numel() == qtype.nbytes(3, 7)
    assert torch.equal(qtype.pack(qtype.unpack(packed))["weight"], packed["weight"])
    assert torch.equal(qtype.dequantize(packed), weight.to(dtype).float())
