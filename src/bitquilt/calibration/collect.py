"""Collection of statistics: second moments of the inputs and of the gradients of every matrix.

One streamed pass forward keeps what every block reads. One pass backward takes, for each output
y of a matrix, its gradient g = ∂(−log p(label))/∂y, with labels that the model itself samples, and
sums for each distinct input x of a block H = Σ ‖g‖² x xᵀ / Σ ‖g‖², and for each matrix of a block
B = E[g gᵀ]. Their product is the Fisher information as K-FAC takes it (Martens & Grosse 2015), with
each token counted for what its outputs matter: half the trace of B ΔW H ΔWᵀ is the KL that a
rounding error ΔW costs, with no forward per candidate. The diagonal of H is the importance matrix
of llama.cpp, weighted.

Letters: N windows, L tokens in a window, T = N·L tokens, D model width, V vocabulary, R outputs
and C inputs of a matrix, F folds of the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import reduce

import torch
from torch import Tensor, nn

from bitquilt.calibration.block_moments import (
    OUTPUTS,
    BlockSums,
    MomentKeeper,
    SavedMoments,
)
from bitquilt.calibration.kept_states import KeptStates
from bitquilt.calibration.packed_moment import pack_moment
from bitquilt.calibration.shrinkage import FOLDS
from bitquilt.calibration.text_share import SumExchange, TextShare
from bitquilt.models.blockwise import (
    BlockwiseModel,
    batch_tokens,
    batches,
    embedding_scale,
    logit_tokens,
)
from bitquilt.models.checkpoint import HEAD, Checkpoint
from bitquilt.models.names import block_path, in_block, layer_of
from bitquilt.runtime.products import PRODUCTS, fast_precision, multiplying
from bitquilt.runtime.progress import Progress
from bitquilt.runtime.workdir import WorkDir

BACKWARD = 4.0
"""What a window takes back through a block, its moments summed, in windows that go forward."""
HEAD_MOMENT = "head moment"
"""The second moment of what the head reads, among what is summed over the whole text."""
ROUGH_OUTPUT = 0.05
"""The relative error of a block's output from which on fast products are given up."""


def collect_statistics(
    model: BlockwiseModel,
    tokens: Tensor,
    folds: Tensor,
    work: WorkDir,
    progress: Progress,
    *,
    keeper: MomentKeeper | None = None,
    share: TextShare | None = None,
) -> None:
    """Run both passes and leave their statistics in the work directory.

    ``hessians/<block>`` holds one [C, C] per distinct input, shrunk as far as the folds of the text
    disagree (:mod:`.shrinkage`) and packed (:mod:`.packed_moment`), ``hessians/head`` that of the
    head; ``outputs/<block>`` holds one B [R, R], packed too, per matrix with few outputs, shrunk as
    far as its worst fold wants (:mod:`.output_shrinkage`) and left out where nothing of it holds;
    ``weights/<block>`` holds ‖g‖² of each token [T] for each input, in the order of the windows as
    given; ``gradients`` holds the diagonal of B [R] of every matrix of a block, and for the
    embedding ``tokens`` [V] (share of each token in the text), ``columns`` [D] (of its outputs) and
    ``head`` [V] (of the logits).

    Args:
        model: the full-precision model.
        tokens: int64 [N, L].
        folds: the fold that each window is of, int64 [N], below ``FOLDS``.
        work: where artefacts go.
        progress: advances after each block of each pass, by :func:`collection_work` in all.
        keeper: takes the moments of each block, from the last to the first, which are all in
            ``hessians``, ``outputs`` and ``weights``; they are saved there if not given.
        share: the windows that this process reads, where others read the rest: it takes the
            moments of some of the blocks then, and the first process saves the others' artefacts.

    Raises:
        LostProcessError: another process that reads has died.
    """
    keeper, share = keeper or SavedMoments(work), share or TextShare()
    if work.has("gradients") and not any(map(keeper.wants, range(model.checkpoint.layers))):
        progress.advance(collection_work(model.checkpoint, share.windows(len(tokens))))
        return
    with _fast_products(model, tokens[:1], progress):
        _collect(model, tokens, folds, work, progress, keeper, share)


@contextmanager
def _fast_products(model: BlockwiseModel, tokens: Tensor, progress: Progress) -> Iterator[None]:
    """Multiply fast within, where the first block does nearly the same to [1, L] tokens then.

    A GPU's blocks multiply in bfloat16: sums over so many tokens hardly see how each was rounded
    (docs/decisions/two-passes.md).
    """
    fast = fast_precision(model.device)
    ways = [(True, fast), (False, fast)] if model.device.type == "cuda" else [(False, fast)]
    errors: list[str] = []
    for in_bfloat16, precision in [] if fast == "highest" else ways:
        error = _error_of_first_block(model, tokens, in_bfloat16, precision)
        if error <= ROUGH_OUTPUT:
            break
        name = PRODUCTS["medium" if in_bfloat16 else precision]
        errors.append(f"{name} would change what the first block adds by {error:.0%}")
    else:
        in_bfloat16, precision = False, "highest"
    if errors:
        progress.say(
            f"The statistics multiply matrices in {PRODUCTS[precision]}, because "
            + " and ".join(errors)
        )
    with _multiplying(model, in_bfloat16, precision):
        yield


@contextmanager
def _multiplying(model: BlockwiseModel, in_bfloat16: bool, precision: str) -> Iterator[None]:
    """Multiply in a precision within, and the model's blocks in bfloat16 if that is wanted."""
    model.in_bfloat16 = in_bfloat16
    try:
        with multiplying(precision):
            yield
    finally:
        model.in_bfloat16 = False


@torch.no_grad()
def _error_of_first_block(
    model: BlockwiseModel, tokens: Tensor, in_bfloat16: bool, precision: str
) -> float:
    """Return the relative error of what the first block adds to [1, L] tokens."""
    hidden, block = model.embed(tokens), model.block(0)
    exact = model.run(block, hidden)
    with _multiplying(model, in_bfloat16, precision):
        return float((model.run(block, hidden) - exact).norm() / (exact - hidden).norm())


def _collect(
    model: BlockwiseModel,
    tokens: Tensor,
    folds: Tensor,
    work: WorkDir,
    progress: Progress,
    keeper: MomentKeeper,
    share: TextShare,
) -> None:
    """Do as :func:`collect_statistics` says."""
    known = work.has("gradients")
    parts = share.parts(folds.argsort(stable=True))  # windows of one fold stand together
    place = torch.cat(parts).argsort()  # where each window went
    own, part = tokens[parts[0]], len(parts[0]) / len(tokens)
    counts = torch.bincount(folds[parts[0]], minlength=FOLDS).tolist()
    kept, exchange = KeptStates(model), SumExchange(share)
    hidden = model.embed(own)
    with torch.no_grad():
        for index in range(model.checkpoint.layers):
            kept.keep(index, hidden)
            model.run_all(model.block(index, then=index + 1), hidden)
            progress.advance(len(own))
        means = {} if known else {HEAD_MOMENT: _head_moment(model, hidden).cpu()}
    gradient, means["head"] = _head_gradient(model, hidden, share.number)
    del hidden
    backward = BACKWARD * len(own)
    progress.advance(backward * _head_in_blocks(model.checkpoint))
    means["tokens"] = torch.bincount(own.flatten(), minlength=len(means["head"])) / own.numel()
    for index in reversed(range(model.checkpoint.layers)):
        sums = BlockSums(index, wanted=keeper.wants(index))
        _backward(model, index, kept.take(index), gradient, counts, sums)
        means |= sums.diagonals()
        if sums.wanted:
            exchange.give(sums)
        del sums
        if index > 0:  # after the last block others first get the totals, for which they wait
            _keep(exchange.whole(), place, keeper)
        progress.advance(backward)
    # y = scale · E[token]: the gradient of the table is scale times that of its output
    scale = embedding_scale(model.checkpoint.config)
    means["columns"] = (scale * gradient).flatten(0, 1).square().mean(0)
    exchange.give_totals({name: mean.cpu() * part for name, mean in means.items()})
    if share.number == 0:
        totals = exchange.totals()
        if not known:  # else they are what other passes have read
            work.save("hessians/head", pack_moment(HEAD, totals.pop(HEAD_MOMENT)), {})
            work.save("gradients", totals, {})
        exchange.say_saved()
    _keep(exchange.whole(to_the_end=True), place, keeper)
    exchange.wait_until_saved()


def _keep(blocks: Iterable[BlockSums], place: Tensor, keeper: MomentKeeper) -> None:
    """Let the keeper have the moments of blocks, one at a time."""
    for sums in blocks:
        keeper.keep(sums.moments(place))


def collection_work(checkpoint: Checkpoint, windows: int) -> float:
    """Return what both passes take, in windows that go forward through one block."""
    backward = BACKWARD * (checkpoint.layers + _head_in_blocks(checkpoint))
    return windows * (checkpoint.layers + backward)


def widths_of_outputs(checkpoint: Checkpoint, layer: int) -> list[int]:
    """List R of the second moments of one block's output gradients."""
    outputs = [
        rows for module, (rows, _) in checkpoint.matrices.items() if layer_of(module) == layer
    ]
    return [rows for rows in outputs if rows <= OUTPUTS]


def _head_in_blocks(checkpoint: Checkpoint) -> float:
    """Return how many blocks have as many weights as the output matrix."""
    return checkpoint.head_weights * checkpoint.layers / checkpoint.block_weights


def second_moment(x: Tensor) -> Tensor:
    """Return the mean of x xᵀ, [C, C], over all tokens of [.., C]."""
    rows = x.flatten(0, -2)  # [.., C] → [T, C]
    return rows.T @ rows / len(rows)


def _head_moment(model: BlockwiseModel, hidden: Tensor) -> Tensor:
    """Return the second moment [D, D] of what the head reads, given the last states [N, L, D]."""
    moments = (
        second_moment(model.final_norm(hidden[rows])) * (len(hidden[rows]) / len(hidden))
        for rows in batches(hidden, batch_tokens(hidden.shape[2]))
    )
    return reduce(Tensor.add_, moments)


def linears(block: nn.Module, index: int) -> list[tuple[str, nn.Linear]]:
    """List the linear layers of a one-block model, each with its path in the whole model."""
    return [
        (f"{block_path(index)}.{in_block(name)}", module)
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
    ]


def _head_gradient(model: BlockwiseModel, hidden: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return the gradient of −log p(sampled label) before the final norm, and E[p (1 − p)].

    Args:
        model: the model.
        hidden: [n, L, D] after the last block.
        seed: of the labels.

    Returns:
        gradients [n, L, D], and the logits' Fisher diagonal [V] (exact, not sampled).
    """
    head = model.head()
    generator = torch.Generator().manual_seed(seed)
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
    model: BlockwiseModel,
    index: int,
    inputs: Tensor,
    gradient: Tensor,
    counts: Iterable[int],
    sums: BlockSums,
) -> None:
    """Move gradients [N, L, D] back through a block, in place, and sum its moments.

    Args:
        model: the full-precision model.
        index: of the block.
        inputs: what it reads [N, L, D], fold by fold; may be coarser than float32.
        gradient: at its output [N, L, D]; at its input then.
        counts: windows of each fold.
        sums: what was summed, which is nothing yet.
    """
    block = model.block(index, then=index - 1)
    hooks = [
        linear.register_forward_hook(sums.watch(name)) for name, linear in linears(block, index)
    ]
    for fold, windows in enumerate(_folds(counts)):
        for rows in batches(inputs[windows], batch_tokens(inputs.shape[2])):
            sums.begin(fold)
            x = inputs[windows][rows].to(gradient.dtype, copy=True).requires_grad_()
            with torch.enable_grad():
                y = model.run(block, x)
            y.backward(gradient[windows][rows])
            assert x.grad is not None
            gradient[windows][rows] = x.grad
            sums.add()
    for hook in hooks:
        hook.remove()


def _folds(counts: Iterable[int]) -> Iterator[slice]:
    """Yield which windows each fold has, where they stand fold by fold."""
    start = 0
    for count in counts:
        yield slice(start, start + count)
        start += count
