"""Collection of statistics: second moments of the inputs and of the gradients of every matrix.

One streamed pass forward collects, for each distinct input X of a block, H = XᵀX / tokens; its
diagonal is the importance matrix of llama.cpp. One streamed pass backward collects, for each
output y, E[g²] with g = ∂(−log p(label))/∂y and labels that the model itself samples: the diagonal
of the Fisher information (K-FAC, Martens & Grosse 2015). Together they say how far a rounding
error moves the model's distribution, with no forward per candidate.

Letters: N windows, L tokens in a window, T = N·L tokens, D model width, V vocabulary, R outputs
and C inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from bitquilt.models.blockwise import BlockwiseModel, batches, embedding_scale, logit_tokens
from bitquilt.models.checkpoint import HEAD, Checkpoint
from bitquilt.models.names import block_path, in_block
from bitquilt.runtime.progress import Progress
from bitquilt.runtime.workdir import WorkDir

SLABS = 4
"""A second moment is symmetric: cut into so many slabs, it takes five of eight products."""
BACKWARD = 2.0
"""What a window takes forward and back through a block, in windows that go forward only and leave
their Hessians."""
SHARED_INPUTS = {
    "self_attn.k_proj": "self_attn.q_proj",
    "self_attn.v_proj": "self_attn.q_proj",
    "mlp.up_proj": "mlp.gate_proj",
}
"""Matrix → the matrix that reads the same input; one Hessian serves both."""


def input_of(module: str) -> str:
    """Return the module under whose name the Hessian of this module's input is kept."""
    for reader, owner in SHARED_INPUTS.items():
        if module.endswith(reader):
            return module.removesuffix(reader) + owner
    return module


def collect_statistics(
    model: BlockwiseModel, tokens: Tensor, gradient_windows: int, work: WorkDir, progress: Progress
) -> None:
    """Run both passes and leave their statistics in the work directory.

    ``hessians/<block>`` holds one [C, C] per distinct input, ``hessians/head`` that of the head;
    ``gradients`` holds one [R] per matrix of a block, and for the embedding ``tokens`` [V] (share
    of each token in the text), ``columns`` [D] (of its outputs) and ``head`` [V] (of the logits).
    Blocks that are already there are passed over without collecting.

    Args:
        model: the full-precision model.
        tokens: int64 [N, L].
        gradient_windows: how many of them, the first, are read backward.
        work: where artefacts go.
        progress: advances after each block of each pass, by :func:`collection_work` in all.
    """
    if work.has("gradients"):
        progress.advance(collection_work(model.checkpoint, len(tokens), gradient_windows))
        return
    backward = BACKWARD * gradient_windows
    kept: list[Tensor] = []  # what each block reads, for the windows of the backward pass
    hidden = model.embed(tokens)
    with torch.no_grad():
        for index in range(model.checkpoint.layers):
            kept.append(hidden[:gradient_windows].clone())
            _forward(model, index, hidden, work)
            progress.advance(len(tokens))
        if not work.has("hessians/head"):
            work.save("hessians/head", {HEAD: second_moment(model.final_norm(hidden)).cpu()}, {})
    gradient, head = _head_gradient(model, hidden[:gradient_windows])
    progress.advance(backward * _head_in_blocks(model.checkpoint))
    moments = {
        "head": head,
        "tokens": torch.bincount(tokens.flatten(), minlength=len(head)) / tokens.numel(),
    }
    for index in reversed(range(model.checkpoint.layers)):
        gradient = _backward(model, index, kept.pop(), gradient, moments)
        progress.advance(backward)
    # y = scale · E[token]: the gradient of the table is scale times that of its output
    scale = embedding_scale(model.checkpoint.config)
    moments["columns"] = (scale * gradient).flatten(0, 1).square().mean(0)
    work.save("gradients", {name: t.cpu() for name, t in moments.items()}, {})


def collection_work(checkpoint: Checkpoint, windows: int, gradient_windows: int) -> float:
    """Return what both passes take, in windows that go forward through one block."""
    backward = BACKWARD * gradient_windows * (checkpoint.layers + _head_in_blocks(checkpoint))
    return windows * checkpoint.layers + backward


def _head_in_blocks(checkpoint: Checkpoint) -> float:
    """Return how many blocks have as many weights as the output matrix."""
    return checkpoint.head_weights * checkpoint.layers / checkpoint.block_weights


def _forward(model: BlockwiseModel, index: int, hidden: Tensor, work: WorkDir) -> None:
    """Move hidden states [N, L, D] through a block in place, collecting its Hessians."""
    block = model.block(index)
    artefact = f"hessians/{index}"
    if work.has(artefact):
        model.run_all(block, hidden)
        return
    hessians: dict[str, Tensor] = {}
    hooks = [
        linear.register_forward_pre_hook(_adder(hessians, name))
        for name, linear in linears(block, index)
        if input_of(name) == name
    ]
    model.run_all(block, hidden)
    for hook in hooks:
        hook.remove()
    tokens = hidden.shape[0] * hidden.shape[1]
    moments = {name: _mirrored(h).div_(tokens).cpu() for name, h in hessians.items()}
    work.save(artefact, moments, {})


def _adder(hessians: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
    def add(_: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0].flatten(0, -2)  # [n, L, C] → [T, C]
        hessian = hessians.setdefault(name, x.new_zeros(x.shape[1], x.shape[1]))
        for own, on in _slabs(x.shape[1]):
            hessian[own, on].addmm_(x[:, own].T, x[:, on])

    return add


def _slabs(columns: int) -> Iterator[tuple[slice, slice]]:
    """Yield slabs of columns with all columns from there on; these see every pair about once."""
    step = -(-columns // SLABS)
    for start in range(0, columns, step):
        yield slice(start, start + step), slice(start, None)


def _mirrored(hessian: Tensor) -> Tensor:
    """Fill in what :func:`_adder` left out from the other side of the diagonal."""
    for own, _ in _slabs(len(hessian)):
        hessian[own.stop :, own] = hessian[own, own.stop :].T
    return hessian


def second_moment(x: Tensor) -> Tensor:
    """Return the mean of x xᵀ, [C, C], over all tokens of [.., C]."""
    rows = x.flatten(0, -2)  # [.., C] → [T, C]
    return rows.T @ rows / len(rows)


def linears(block: nn.Module, index: int) -> list[tuple[str, nn.Linear]]:
    """List the linear layers of a one-block model, each with its path in the whole model."""
    return [
        (f"{block_path(index)}.{in_block(name)}", module)
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
    ]


def _head_gradient(model: BlockwiseModel, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of −log p(sampled label) before the final norm, and E[p (1 − p)].

    Args:
        model: the model.
        hidden: [n, L, D] after the last block.

    Returns:
        gradients [n, L, D], and the logits' Fisher diagonal [V] (exact, not sampled).
    """
    head = model.head()
    generator = torch.Generator().manual_seed(0)
    fisher = torch.zeros(head.shape[0], device=head.device)
    gradient = torch.empty_like(hidden)
    flat, flat_gradient = hidden.flatten(0, 1), gradient.flatten(0, 1)  # [T, D]
    at_once = logit_tokens(len(head))
    for start in range(0, len(flat), at_once):
        rows = slice(start, start + at_once)
        x = flat[rows].clone().requires_grad_()
        with torch.enable_grad():
            y = model.final_norm(x)
        p = (y.detach() @ head.T).softmax(-1)
        fisher += (p * (1 - p)).sum(0)
        label = sample(p, generator)
        y.backward(p.scatter_add(1, label, -torch.ones_like(p[:, :1])) @ head)
        assert x.grad is not None
        flat_gradient[rows] = x.grad
    return gradient, fisher / len(flat)


def sample(p: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one label [T, 1] from each distribution [T, V]: the same ones on every device."""
    cdf = p.double().cumsum(-1)
    u = torch.rand(len(p), 1, generator=generator, dtype=torch.float64).to(p.device)
    return torch.searchsorted(cdf, u * cdf[:, -1:]).clamp(max=p.shape[-1] - 1)


def _backward(
    model: BlockwiseModel, index: int, inputs: Tensor, gradient: Tensor, moments: dict[str, Tensor]
) -> Tensor:
    """Move gradients [n, L, D] back through a block, adding E[g²] [R] of each linear's output."""
    block = model.block(index)
    tokens = inputs.shape[0] * inputs.shape[1]
    before = torch.empty_like(gradient)

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def add(g: Tensor) -> None:
            square = g.flatten(0, -2).square().sum(0) / tokens
            moments[name] = moments[name] + square if name in moments else square

        def hook(_: nn.Module, __: tuple[Tensor], output: Tensor) -> None:
            output.register_hook(add)

        return hook

    hooks = [linear.register_forward_hook(watch(name)) for name, linear in linears(block, index)]
    for rows in batches(inputs):
        x = inputs[rows].clone().requires_grad_()
        with torch.enable_grad():
            y = model.run(block, x)
        y.backward(gradient[rows])
        assert x.grad is not None
        before[rows] = x.grad
    for hook in hooks:
        hook.remove()
    return before
