"""Streamed moments against the whole transformers model and autograd."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from bitquilt.calibration.collect import collect_statistics, collection_work, input_of, sample
from bitquilt.models import open_checkpoint
from bitquilt.models.blockwise import BlockwiseModel
from bitquilt.models.checkpoint import HEAD
from bitquilt.runtime.progress import Silent
from bitquilt.runtime.workdir import WorkDir
from tests.factories import tiny_checkpoint
from tests.progress import Recorded

WINDOWS, LENGTH = 3, 16


@pytest.fixture
def captured(tmp_path):
    directory = tiny_checkpoint(tmp_path, "qwen3")
    checkpoint = open_checkpoint(directory)
    tokens = torch.randint(3, 200, (WINDOWS, LENGTH), generator=torch.Generator().manual_seed(0))
    work = WorkDir(tmp_path / "work", {})
    steps = []
    collect_statistics(BlockwiseModel(checkpoint), tokens, 2, work, Recorded(steps))
    assert sum(steps) == pytest.approx(collection_work(checkpoint, len(tokens), 2))
    whole = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return checkpoint, whole, tokens, work


def test_hessians_are_the_input_moments(captured):
    checkpoint, whole, tokens, work = captured
    inputs = {}
    for name, module in whole.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda _, args, name=name: inputs.__setitem__(name, args[0].flatten(0, 1))
            )
    with torch.no_grad():
        whole(tokens)
    for module in checkpoint.matrices:
        if not module.startswith("model.layers"):
            continue
        saved = work.load(f"hessians/{module.split('.')[2]}")[input_of(module)]
        x = inputs[module]
        torch.testing.assert_close(saved, x.T @ x / len(x), rtol=1e-4, atol=1e-5)
    x = inputs["lm_head"]
    torch.testing.assert_close(
        work.load("hessians/head")[HEAD], x.T @ x / len(x), rtol=1e-4, atol=1e-5
    )


def test_head_fisher_and_token_shares(captured):
    _, whole, tokens, work = captured
    gradients = work.load("gradients")
    with torch.no_grad():
        p = whole(tokens[:2]).logits.softmax(-1)
    torch.testing.assert_close(gradients["head"], (p * (1 - p)).mean((0, 1)), rtol=1e-3, atol=1e-7)
    assert gradients["tokens"].sum() == pytest.approx(1.0)


def test_samples_follow_the_distribution():
    p = torch.tensor([[0.5, 0.0, 0.2, 0.3]])
    labels = sample(p.expand(20_000, -1), torch.Generator().manual_seed(0))
    shares = torch.bincount(labels[:, 0], minlength=4) / 20_000
    torch.testing.assert_close(shares, p[0], atol=0.012, rtol=0)
    assert shares[1] == 0


def test_gradients_are_the_mean_squares_of_autograd(captured):
    """The same sampled labels, through the whole model at once."""
    checkpoint, whole, tokens, work = captured
    gradients = work.load("gradients")
    tokens = tokens[:2]
    seen = {}

    def watch(name):
        def hook(_, __, output):
            output.register_hook(lambda g: seen.__setitem__(name, g.flatten(0, 1)))

        return hook

    for name, module in whole.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(watch(name))
    logits = whole(tokens).logits.flatten(0, 1)
    generator = torch.Generator().manual_seed(0)
    labels = sample(logits.detach().softmax(-1), generator)
    torch.nn.functional.cross_entropy(logits, labels[:, 0], reduction="sum").backward()
    for module in checkpoint.matrices:
        if module.startswith("model.layers"):
            expected = seen[module].square().mean(0)
            torch.testing.assert_close(gradients[module], expected, rtol=1e-2, atol=1e-6)


def test_an_interrupted_pass_ends_with_the_same_moments(captured, tmp_path):
    checkpoint, _, tokens, work = captured
    again = WorkDir(tmp_path / "again", {})
    again.save("hessians/0", work.load("hessians/0"), {})
    collect_statistics(BlockwiseModel(checkpoint), tokens, 2, again, Silent())
    for artefact in ("hessians/1", "hessians/head", "gradients"):
        for name, tensor in work.load(artefact).items():
            assert torch.equal(tensor, again.load(artefact)[name])
