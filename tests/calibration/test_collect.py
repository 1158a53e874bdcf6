"""Streamed moments against the whole transformers model and autograd."""

from contextlib import nullcontext

import pytest
import torch
from transformers import AutoModelForCausalLM

from bitquilt.calibration import block_moments, collect
from bitquilt.calibration.block_moments import input_of
from bitquilt.calibration.collect import collect_statistics, collection_work, sample
from bitquilt.calibration.shrinkage import shrink_
from bitquilt.calibration.statistics import CalibrationStats
from bitquilt.models import open_checkpoint
from bitquilt.models.blockwise import BlockwiseModel
from bitquilt.models.checkpoint import HEAD
from bitquilt.models.names import layer_of
from bitquilt.runtime.progress import Silent
from bitquilt.runtime.workdir import WorkDir
from tests.factories import tiny_checkpoint
from tests.progress import Recorded

WINDOWS, LENGTH = 3, 16


FOLDS = torch.tensor([0, 2, 0])


@pytest.fixture
def captured(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "fast_precision", lambda _: "highest")
    directory = tiny_checkpoint(tmp_path, "qwen3")
    checkpoint = open_checkpoint(directory)
    tokens = torch.randint(3, 200, (WINDOWS, LENGTH), generator=torch.Generator().manual_seed(0))
    work = WorkDir(tmp_path / "work", {})
    steps = []
    collect_statistics(BlockwiseModel(checkpoint), tokens, FOLDS, work, Recorded(steps))
    assert sum(steps) == pytest.approx(collection_work(checkpoint, len(tokens)))
    whole = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return checkpoint, whole, tokens[FOLDS.argsort(stable=True)], work


def inputs_and_gradients(whole, tokens):
    """What every linear layer reads and the gradient at its output, by autograd, [T, .] each."""
    inputs, gradients = {}, {}

    def watch(name):
        def hook(_, args, output):
            inputs[name] = args[0].detach().flatten(0, 1)
            output.register_hook(lambda g: gradients.__setitem__(name, g.flatten(0, 1)))

        return hook

    for name, module in whole.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(watch(name))
    logits = whole(tokens).logits.flatten(0, 1)
    labels = sample(logits.detach().softmax(-1), torch.Generator().manual_seed(0))
    torch.nn.functional.cross_entropy(logits, labels[:, 0], reduction="sum").backward()
    return inputs, gradients


def test_hessians_are_input_moments_weighted_by_squared_gradients(captured):
    checkpoint, whole, tokens, work = captured
    inputs, gradients = inputs_and_gradients(whole, tokens)
    blocks = [module for module in checkpoint.matrices if module.startswith("model.layers")]
    for module in blocks:
        readers = [other for other in blocks if input_of(other) == input_of(module)]
        weights = sum(gradients[reader].square().sum(1, keepdim=True) for reader in readers)
        x = inputs[module]
        artefact = f"hessians/{module.split('.')[2]}"
        share = float(work.facts(artefact)[input_of(module)])
        expected = shrink_((weights * x).T @ x / weights.sum(), share)
        hessian = CalibrationStats(checkpoint, work).hessian(module)
        torch.testing.assert_close(hessian, expected, rtol=1e-2, atol=1e-4)
    x = inputs["lm_head"]
    head = CalibrationStats(checkpoint, work).hessian(HEAD)
    torch.testing.assert_close(head, x.T @ x / len(x), rtol=1e-3, atol=1e-3)


def test_moments_of_output_gradients_are_those_of_autograd(captured, monkeypatch):
    checkpoint, whole, tokens, work = captured
    _, gradients = inputs_and_gradients(whole, tokens)
    statistics = CalibrationStats(checkpoint, work)
    diagonals, known = work.load("gradients"), 0
    for module in checkpoint.matrices:
        if not module.startswith("model.layers"):
            assert statistics.outputs(module) is None
            continue
        g = gradients[module]
        torch.testing.assert_close(
            diagonals[module], g.square().mean(0), rtol=1e-2, atol=1e-6, check_dtype=False
        )
        moment = statistics.outputs(module)
        share = float(work.facts(f"outputs/{layer_of(module)}").get(module, 1))
        assert (moment is None) == (share == 1)
        if moment is not None:
            known += 1
            expected = shrink_(g.T @ g / len(g), share)
            torch.testing.assert_close(moment, expected, rtol=1e-2, atol=1e-6)
    assert known


def test_a_matrix_of_many_outputs_has_no_moment_of_their_gradients(captured, tmp_path, monkeypatch):
    checkpoint, _, tokens, _ = captured
    module = "model.layers.0.mlp.down_proj"
    monkeypatch.setattr(block_moments, "OUTPUTS", checkpoint.matrices[module][0] - 1)
    work = WorkDir(tmp_path / "few", {})
    collect_statistics(BlockwiseModel(checkpoint), tokens, FOLDS, work, Silent())
    assert CalibrationStats(checkpoint, work).outputs(module) is None
    assert module in work.load("gradients")


def test_head_fisher_and_token_shares(captured):
    _, whole, tokens, work = captured
    gradients = work.load("gradients")
    with torch.no_grad():
        p = whole(tokens).logits.softmax(-1)
    torch.testing.assert_close(gradients["head"], (p * (1 - p)).mean((0, 1)), rtol=1e-3, atol=1e-7)
    assert gradients["tokens"].sum() == pytest.approx(1.0)


def test_samples_follow_the_distribution():
    p = torch.tensor([[0.5, 0.0, 0.2, 0.3]])
    labels = sample(p.expand(20_000, -1), torch.Generator().manual_seed(0))
    shares = torch.bincount(labels[:, 0], minlength=4) / 20_000
    torch.testing.assert_close(shares, p[0], atol=0.012, rtol=0)
    assert shares[1] == 0


def test_an_interrupted_pass_ends_with_the_same_moments(captured, tmp_path):
    checkpoint, _, tokens, work = captured
    again = WorkDir(tmp_path / "again", {})
    for artefact in ("hessians/1", "outputs/1", "weights/1"):
        if work.has(artefact):
            again.save(artefact, work.load(artefact), {})
    collect_statistics(BlockwiseModel(checkpoint), tokens, FOLDS.sort()[0], again, Silent())
    for artefact in ("hessians/0", "outputs/0", "hessians/head", "gradients"):
        for name, tensor in work.load(artefact).items():
            assert torch.equal(tensor, again.load(artefact)[name])


@pytest.mark.parametrize(("rough", "precision"), [(0.1, "medium"), (0.0, "highest")])
def test_fast_products_are_given_up_where_they_compute_something_else(
    captured, tmp_path, monkeypatch, rough, precision
):
    checkpoint, _, tokens, _ = captured
    used, lines = [], []
    monkeypatch.setattr(collect, "fast_precision", lambda _: "medium")
    monkeypatch.setattr(collect, "ROUGH_OUTPUT", rough)
    monkeypatch.setattr(
        collect, "_collect", lambda *_: used.append(torch.get_float32_matmul_precision())
    )
    progress = Recorded(lines=lines)
    collect_statistics(
        BlockwiseModel(checkpoint), tokens, FOLDS, WorkDir(tmp_path / "new", {}), progress
    )
    assert used == [precision]
    assert torch.get_float32_matmul_precision() == "highest"
    told = any("because bfloat16 would change" in line for line in lines)
    assert told == (precision == "highest")


def test_blocks_that_multiply_in_bfloat16_leave_nearly_the_same_moments(
    captured, tmp_path, monkeypatch
):
    checkpoint, _, tokens, work = captured
    model = BlockwiseModel(checkpoint)
    model.in_bfloat16 = True
    monkeypatch.setattr(collect, "_fast_products", lambda *_: nullcontext())
    rough = WorkDir(tmp_path / "rough", {})
    collect_statistics(model, tokens, FOLDS.sort()[0], rough, Silent())
    exact, found = CalibrationStats(checkpoint, work), CalibrationStats(checkpoint, rough)
    for module in ("self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj"):
        own, other = (one.hessian(f"model.layers.0.{module}") for one in (exact, found))
        # of 48 labels that are drawn, one may be another
        assert 0 < (other - own).norm() < 0.1 * own.norm()
