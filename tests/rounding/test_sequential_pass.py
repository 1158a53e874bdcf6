"""Sequential correction of a mix on tiny models."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from bitquilt import qtypes
from bitquilt.calibration.collect import collect_statistics
from bitquilt.models import open_checkpoint
from bitquilt.models.architectures import architecture_of
from bitquilt.models.blockwise import BlockwiseModel
from bitquilt.models.checkpoint import EMBEDDING
from bitquilt.rounding import sequential_pass
from bitquilt.rounding.gptaq import Drift
from bitquilt.rounding.layer_bank import LayerBank
from bitquilt.rounding.round_layers import polish_layers, round_layers
from bitquilt.rounding.sequential_pass import round_sequentially
from bitquilt.rounding.staged_block import StagedBlock
from bitquilt.runtime.progress import Silent
from bitquilt.runtime.workdir import WorkDir
from tests.factories import tiny_checkpoint
from tests.progress import Speechless

TOKENS = torch.randint(3, 200, (8, 64), generator=torch.Generator().manual_seed(0))


def made(tmp_path, family="qwen3", rounding="gptq"):
    """A bank of 3-bit matrices under an untouched embedding, and the mix."""
    directory = tiny_checkpoint(tmp_path, family, hidden=64, heads=2)
    checkpoint = open_checkpoint(directory)
    work = WorkDir(tmp_path / "work", {})
    collect_statistics(
        BlockwiseModel(checkpoint),
        TOKENS,
        torch.zeros(len(TOKENS), dtype=torch.int64),
        work,
        Silent(),
    )
    bank = LayerBank(checkpoint, work, rounding)
    allocation = dict.fromkeys(checkpoint.matrices, "3bit-g64") | {EMBEDDING: "F32"}
    cells = {module: [qtype] for module, qtype in allocation.items()}
    round_layers(bank, cells, Silent())
    return bank, allocation, directory


def run(bank, allocation, tokens=TOKENS):
    steps = []
    sequential = round_sequentially(bank, allocation, tokens, "gptq", Speechless(steps))
    assert len(steps) == bank.checkpoint.layers
    return sequential


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return made(tmp_path_factory.mktemp("sequential"))


@pytest.fixture(scope="module")
def sequential(tiny):
    return run(*tiny[:2])


def kept_roundings(sequential, layer):
    """Module → ``corrected`` or ``bank``, as a block's artefact says."""
    return sequential.bank.work.facts(sequential.artefact(layer))


def weights_of(packed, allocation):
    return {
        module: qtypes.get(qtype).dequantize(packed(module, qtype))
        for module, qtype in allocation.items()
    }


def divergence(directory, weights):
    """KL of the whole transformers model with other matrices, on the text it was corrected on."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        teacher = model(TOKENS).logits.log_softmax(-1)
        for module, weight in weights.items():
            model.get_submodule(module).weight.copy_(weight)
        student = model(TOKENS).logits.log_softmax(-1)
    return (teacher.exp() * (teacher - student)).sum(-1).mean().item()


def test_correction_brings_the_model_closer(tiny, sequential):
    bank, allocation, directory = tiny
    before = divergence(directory, weights_of(bank.packed, allocation))
    after = divergence(directory, weights_of(sequential.packed, allocation))
    assert after < 0.85 * before


def test_nothing_quantized_before_leaves_the_banks_rounding(tiny, sequential):
    bank = tiny[0]
    for kind in ("q", "k", "v"):
        module = f"model.layers.0.self_attn.{kind}_proj"
        assert kept_roundings(sequential, 0)[module] == "bank"
        there, here = bank.packed(module, "3bit-g64"), sequential.packed(module, "3bit-g64")
        assert all(torch.equal(there[part], here[part]) for part in there)
    assert kept_roundings(sequential, 1)["model.layers.1.mlp.down_proj"] == "corrected"
    assert torch.equal(
        sequential.packed(EMBEDDING, "F32")["weight"], bank.packed(EMBEDDING, "F32")["weight"]
    )


def test_a_block_that_is_done_is_not_done_again(tiny, sequential, monkeypatch):
    bank, allocation, _ = tiny
    last = bank.checkpoint.layers - 1
    before, kept = bank.work.load(sequential.artefact(last)), kept_roundings(sequential, last)
    (bank.work.path / f"{sequential.artefact(last)}.safetensors").unlink()
    layers, whole = [], sequential_pass._correct_block
    monkeypatch.setattr(
        sequential_pass, "_correct_block", lambda *a: (layers.append(a[1].layer), whole(*a))
    )
    assert run(bank, allocation) == sequential
    assert layers == [last]
    again = bank.work.load(sequential.artefact(last))
    assert before.keys() == again.keys()
    assert all(torch.equal(before[part], again[part]) for part in before)
    assert kept_roundings(sequential, last) == kept


def test_other_mixes_and_other_text_have_artefacts_of_their_own(tiny, sequential):
    allocation = tiny[1]
    again = dict(reversed(allocation.items()))
    assert sequential.folder == f"sequential/{sequential_pass._key(again, TOKENS)}"
    other = allocation | {"model.layers.0.mlp.up_proj": "4bit-g64"}
    keys = {sequential_pass._key(other, TOKENS), sequential_pass._key(allocation, TOKENS[:2])}
    assert len({sequential.folder, *(f"sequential/{key}" for key in keys)}) == 3


def test_what_serves_worse_than_the_banks_rounding_is_not_kept(tiny, monkeypatch):
    bank, allocation, _ = tiny
    monkeypatch.setattr(sequential_pass, "corrected", lambda weight, *_: -weight)
    sequential = run(bank, allocation, TOKENS.flip(0))
    assert {kept for layer in (0, 1) for kept in kept_roundings(sequential, layer).values()} == {
        "bank"
    }
    for module, qtype in allocation.items():
        there, here = bank.packed(module, qtype), sequential.packed(module, qtype)
        assert all(torch.equal(there[part], here[part]) for part in there)


def test_what_stays_the_banks_is_polished(tmp_path, monkeypatch):
    """As the matrix would be in a file that was not corrected."""
    bank, allocation, _ = made(tmp_path, rounding="full")
    polish_layers(bank, {module: [qtype] for module, qtype in allocation.items()}, Silent())
    monkeypatch.setattr(sequential_pass, "corrected", lambda weight, *_: -weight)
    sequential = run(bank, allocation)
    module = "model.layers.1.mlp.up_proj"
    assert kept_roundings(sequential, 1)[module] == "bank"
    found, expected = sequential.packed(module, "3bit-g64"), bank.polished(module, "3bit-g64")
    assert all(torch.equal(found[part], expected[part]) for part in expected)
    assert not torch.equal(found["weight"], bank.packed(module, "3bit-g64")["weight"])


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_moments_are_those_of_whole_models(tmp_path, family):
    """The input and the residual stream of the last matrix, against hooks on transformers' own."""
    directory = tiny_checkpoint(tmp_path, family, hidden=64, heads=2)
    checkpoint = open_checkpoint(directory)
    module, scale = "model.layers.1.mlp.down_proj", 0.9
    whole = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    norm = "pre_feedforward_layernorm" if family == "gemma3_text" else "post_attention_layernorm"

    def reads():
        seen = {}
        hooks = [
            whole.get_submodule(path).register_forward_pre_hook(
                lambda _, args, path=path: seen.__setitem__(path, args[0].flatten(0, 1))
            )
            for path in (module, f"model.layers.1.{norm}")
        ]
        with torch.no_grad():
            whole(TOKENS)
        for hook in hooks:
            hook.remove()
        return seen.values()

    (stream, x), original = reads(), BlockwiseModel(checkpoint)
    with torch.no_grad():
        whole.get_submodule("model.layers.0.mlp.up_proj").weight.mul_(scale)
    there, seen = reads()

    def scaled(name):
        weight = checkpoint.load(name)
        return weight * scale if name == "model.layers.0.mlp.up_proj.weight" else weight

    quantized = BlockwiseModel(checkpoint, scaled)
    blocks = tuple(
        StagedBlock(model, 1, model.run_all(model.block(0), model.embed(TOKENS)))
        for model in (original, quantized)
    )
    plain = architecture_of(checkpoint.config).plain_residual
    weights = torch.rand(TOKENS.numel(), generator=torch.Generator().manual_seed(5))

    class Counted:
        """Tokens of different weights, and a Hessian of which a quarter was not trusted."""

        def token_weights(self, owner):
            return weights

        def shrunk_by(self, owner):
            return 0.25

    pair = sequential_pass._Pair(1, blocks, plain, Counted())
    first, second = pair.drifts(module)
    found = first + second
    lacking = torch.zeros(len(x), 1) if family == "gemma3_text" else stream - there
    expected = Drift.of(x, seen, lacking, weights, 0.75)
    assert first.weight + second.weight == pytest.approx(float(weights.sum()))
    assert found.kept == 0.75
    for part in ("hessian", "inputs", "stream"):
        torch.testing.assert_close(
            getattr(found, part), getattr(expected, part), rtol=1e-3, atol=1e-3
        )
