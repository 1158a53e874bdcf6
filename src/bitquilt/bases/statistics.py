"""Statistics of a model that bitquilt has no tables of: collected once, kept on the disk.

They are of the parameters of transformers' model, so that bases of all formats share them. What
memory cannot hold at once is summed in several passes over the text, some matrices in each.

Letters: N windows of L tokens, V vocabulary, R rows of a matrix, C columns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from bitquilt.bases.fisher import FisherProducts, owner_of
from bitquilt.bases.lent_weights import lent_weights
from bitquilt.bases.partners import Unit
from bitquilt.bases.products import InputSums
from bitquilt.bases.recomputed import RecomputedLayers
from bitquilt.calibration.block_moments import OUTPUTS, SUM_SLABS
from bitquilt.calibration.collect import sample
from bitquilt.calibration.packed_moment import DIAGONAL, mirrored, pack_moment, unpack_moment
from bitquilt.errors import UserError
from bitquilt.runtime.device import compute_device
from bitquilt.runtime.progress import Progress
from bitquilt.runtime.workdir import WorkDir, under

MOMENT_BYTES = 4 << 30
"""The second moments that are summed in one pass have about so many bytes; a GPU may have room for
more."""
KEPT_BYTES = 1 << 30
"""Autograd may keep so many bytes of a window. An 8B model would keep about 6 GB."""
TRIED_TOKENS = 32
"""On so many it is tried whether layers can be computed again."""
SAME_GRADIENTS = 1e-4
"""Squares of gradients that differ by a smaller share are the same."""
LOGITS_AT_ONCE = 64
"""Tokens whose labels are sampled at once: a vocabulary is large."""
_FISHER = "fisher"


class Lookups:
    """What is looked up in the embeddings of a model, and the gradients of that."""

    def __init__(self, model: nn.Module) -> None:
        """Watch all embeddings of a model; :meth:`close` when it is done."""
        names = {id(one): name for name, one in model.named_parameters()}
        self.columns: dict[str, Tensor] = {}
        """Parameter → Σ g² of its columns, as they are stored, float64 [C]."""
        self.tokens: dict[str, Tensor] = {}
        """Parameter → how often each row was looked up, float64 [R]."""
        self._found: list[tuple[str, Tensor, Tensor, float]] = []
        self._hooks = [
            module.register_forward_hook(self._hook(names[id(module.weight)], module.weight))
            for module in model.modules()
            if isinstance(module, nn.Embedding) and id(module.weight) in names
        ]

    def _hook(self, name: str, weight: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        self.columns[name] = torch.zeros(weight.shape[1], dtype=torch.float64)
        self.tokens[name] = torch.zeros(len(weight), dtype=torch.float64)

        def hook(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            leaf = output.detach().requires_grad_()
            # some models scale what they look up
            stored = weight[inputs[0]].float().square().mean()
            scale = float((output.square().mean() / stored.clamp_min(1e-30)).sqrt())
            self._found.append((name, inputs[0].flatten(), leaf, scale))
            return leaf.clone()  # which the model may change in place

        return hook

    def end_window(self) -> None:
        """Take the gradients of a window."""
        for name, tokens, leaf, scale in self._found:
            if leaf.grad is not None:
                gradient = leaf.grad.flatten(0, -2) * scale
                self.columns[name] += gradient.square().sum(0).double().cpu()
                self.tokens[name] += torch.bincount(tokens.cpu(), minlength=len(self.tokens[name]))
        self._found.clear()

    def forget(self) -> None:
        """Begin again."""
        for total in (*self.columns.values(), *self.tokens.values()):
            total.zero_()

    def close(self) -> None:
        """Watch no longer."""
        for hook in self._hooks:
            hook.remove()


def collect_base_statistics(
    model: nn.Module,
    tokens: Tensor,
    work: WorkDir,
    progress: Progress,
    most_kept: int = KEPT_BYTES,
) -> None:
    """Run text through a model, forward and back, and leave the moments of its matrices.

    Args:
        model: transformers' model, which computes in float32.
        tokens: int64 [N, L].
        work: where moments go; nothing is done if they are there.
        progress: told of a stage.
        most_kept: bytes of what autograd may keep of a window for the way back; where it is more,
            layers are computed again.

    Raises:
        UserError: the model's own code cannot be differentiated.
    """
    if work.has(_FISHER):
        return
    model = model.to(compute_device())
    parameters = dict(model.named_parameters())
    lookups = Lookups(model)
    try:
        again = _recomputes(model, tokens[0], parameters, lookups, most_kept)
        with RecomputedLayers(model) if again else nullcontext():
            first = _seen_once(model, tokens[0], parameters, lookups, again)
            passes = passes_of(first, parameters, moment_bytes())
            count = max([0, *passes.values()]) + 1
            with progress.stage("Reading text, forward and back", count * len(tokens), "moments"):
                for number in range(count):
                    summed, lent = _summed_in(passes, number), lent_weights(model).known
                    products = FisherProducts(parameters, summed, lent, again)
                    for window in tokens:
                        _run(model, window, products, lookups)
                        progress.advance()
                    _save_moments(work, number, products, tokens.numel())
    finally:
        lookups.close()
    facts = {"passes": str(count), "head": "", "width": ""}
    if (head := model.get_output_embeddings()) is not None:  # type: ignore[operator]
        facts["head"] = next(name for name, one in parameters.items() if one is head.weight)
    facts["width"] = str(model.get_input_embeddings().weight.shape[1])  # type: ignore[operator]
    _save_sums(work, facts, products, lookups, tokens.numel())


def moment_bytes() -> int:
    """Return how many bytes of moments are summed in one pass: half of what a GPU has free."""
    if compute_device().type == "cpu":
        return MOMENT_BYTES
    free, _ = torch.cuda.mem_get_info()
    return max(MOMENT_BYTES, free // 2)


def _recomputes(
    model: nn.Module,
    window: Tensor,
    parameters: Mapping[str, Tensor],
    lookups: Lookups,
    most_kept: int,
) -> bool:
    """Tell whether layers are to be computed again: too much is kept, and gradients are the same.

    They are others where layers share what they compute, or drop something at random. It is tried
    on the beginning of a window [L].
    """
    piece = window[:TRIED_TOKENS]
    kept = _seen_once(model, piece, parameters, lookups, again=False)
    if lent_weights(model).saved_bytes * len(window) / len(piece) <= most_kept:
        return False
    try:
        with RecomputedLayers(model):
            found = _seen_once(model, piece, parameters, lookups, again=True)
    except (RuntimeError, UserError):
        return False
    return kept.rows.keys() == found.rows.keys() and all(
        torch.allclose(rows, found.rows[unit], rtol=SAME_GRADIENTS)
        for unit, rows in kept.rows.items()
    )


def _seen_once(
    model: nn.Module,
    window: Tensor,
    parameters: Mapping[str, Tensor],
    lookups: Lookups,
    again: bool,
) -> FisherProducts:
    """See which matrices a window [L] reaches, and sum nothing yet."""
    lent = lent_weights(model)

    def seen() -> FisherProducts:
        first = FisherProducts(parameters, lambda _: False, lent.known, again)
        try:
            _run(model, window, first, lookups)
        finally:
            lent.end_window()
            lookups.end_window()
            lookups.forget()
        return first

    return lent.tried(seen)


def _run(model: nn.Module, window: Tensor, products: FisherProducts, lookups: Lookups) -> None:
    """Run one window [L] forward and back."""
    generator = torch.Generator().manual_seed(int(window.sum()))
    lent = lent_weights(model)
    with torch.enable_grad(), lent.saved(), products:
        logits: Tensor = model(window[None].to(compute_device()), use_cache=False).logits
        gradient = torch.empty_like(logits)
        for start in range(0, logits.shape[1], LOGITS_AT_ONCE):
            own = slice(start, start + LOGITS_AT_ONCE)
            p = logits.detach()[0, own].softmax(-1)
            label = sample(p, generator)
            gradient[0, own] = p.scatter_add(1, label, -torch.ones_like(p[:, :1]))
        products.back = True
        try:
            logits.backward(gradient)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"torch cannot differentiate {type(model).__name__}: {reason}; "
                "give --rounding=nearest"
            ) from error
    lent.end_window()
    products.end_window()
    lookups.end_window()


def passes_of(
    products: FisherProducts, parameters: Mapping[str, Tensor], most: int
) -> dict[Unit, int]:
    """Part matrices so that the moments of each part fit into memory at once.

    Args:
        products: has seen a window; matrices that it did not reach are in the first pass.
        parameters: have the shapes.
        most: bytes of the moments of one pass.

    Returns:
        the number of the pass of each matrix; -1 where its moment alone is too large.
    """
    owners = {unit: owner_of(together) for together in products.readers for unit in together}
    passes: dict[Unit, int] = {}
    number = taken = 0
    for unit in products.rows:
        rows, columns = parameters[unit.parameter].shape[-2:]
        if unit.transposed:
            rows, columns = columns, rows
        shared = owners.get(unit, unit) != unit
        nbytes = 4 * ((0 if shared else columns**2) + (rows**2 if rows <= OUTPUTS else 0))
        if 4 * columns**2 > most:
            passes[unit] = -1
            continue
        if taken and taken + nbytes > most:
            number, taken = number + 1, 0
        passes[unit] = number
        taken += nbytes
    return passes


def _summed_in(passes: Mapping[Unit, int], number: int) -> Callable[[Unit], bool]:
    return lambda unit: passes.get(unit, 0) == number


def _save_moments(work: WorkDir, number: int, products: FisherProducts, tokens: int) -> None:
    """Keep what one pass summed."""
    tensors: dict[str, Tensor] = {}
    facts = {}
    for place, (readers, moment) in enumerate(products.moments.items()):
        if moment.weight > 0:
            whole = mirrored(moment.total, SUM_SLABS).div_(moment.weight)
            tensors |= pack_moment(f"inputs/{place}", whole)
            tensors[f"weights/{place}"] = torch.tensor(moment.weight, dtype=torch.float64)
            facts[f"inputs/{place}"] = json.dumps([key_of(unit) for unit in readers])
    for unit, outputs in products.outputs.items():
        tensors |= pack_moment(f"outputs/{key_of(unit)}", outputs.div_(tokens))
    if tensors:
        work.save(f"moments/{number}", tensors, facts)


def _save_sums(
    work: WorkDir,
    facts: dict[str, str],
    products: FisherProducts,
    lookups: Lookups,
    tokens: int,
) -> None:
    """Keep what every pass sums, of the last one; this says that all is there."""
    passes = int(facts["passes"])
    tensors: dict[str, Tensor] = {}
    for unit, sums in products.sums.items():
        key = key_of(unit)
        tensors[f"squares/{key}"] = sums.squares
        tensors[f"counts/{key}"] = torch.tensor(sums.count, dtype=torch.float64)
    for unit, rows in products.rows.items():
        tensors[f"rows/{key_of(unit)}"] = rows / tokens
    for name, columns in lookups.columns.items():
        tensors[f"columns/{name}"] = columns / (tokens * passes)
        tensors[f"tokens/{name}"] = lookups.tokens[name] / (tokens * passes)
    work.save(_FISHER, tensors, facts)


def key_of(unit: Unit) -> str:
    """Return the name that a matrix has in artefacts."""
    return f"{unit.parameter}:{unit.index}:{int(unit.transposed)}"


class BaseStatistics:
    """What :func:`collect_base_statistics` left, read for one matrix at a time."""

    def __init__(self, work: WorkDir) -> None:
        """Read what is small."""
        self._work = work
        facts = work.facts(_FISHER)
        self.head: str = facts["head"]
        """The parameter that makes logits; empty where the model does not say."""
        self.width = int(facts["width"])
        """Numbers of the residual stream."""
        self._sums = work.load(_FISHER)
        self._inputs: dict[str, list[tuple[str, str]]] = {}
        self._outputs: dict[str, str] = {}
        for number in range(int(facts["passes"])):
            if not work.has(artefact := f"moments/{number}"):
                continue
            for place, units in work.facts(artefact).items():
                for key in json.loads(units):
                    self._inputs.setdefault(key, []).append((artefact, place))
            with work.open(artefact) as handle:
                for key in handle.keys():  # noqa: SIM118
                    if key.startswith("outputs/") and key.endswith(f"/{DIAGONAL}"):
                        self._outputs[key.removesuffix(f"/{DIAGONAL}")] = artefact

    def sums(self) -> dict[Unit, InputSums]:
        """Return the plain sums of squares of what each matrix read."""
        found = {}
        for name, squares in under("squares/", self._sums).items():
            parameter, index, transposed = name.rsplit(":", 2)
            count = float(self._sums[f"counts/{name}"])
            unit = Unit(parameter, int(index), transposed == "1")
            found[unit] = InputSums(squares, count)
        return found

    def rows(self, unit: Unit) -> Tensor | None:
        """Return E[g²] of each output of a matrix, float64 [R]; None where nothing came back."""
        return self._sums.get(f"rows/{key_of(unit)}")

    def looked_up(self, parameter: str) -> tuple[Tensor, Tensor] | None:
        """Return E[g²] [C] of an embedding's columns, and the share of each row [R]."""
        if f"columns/{parameter}" not in self._sums:
            return None
        return self._sums[f"columns/{parameter}"], self._sums[f"tokens/{parameter}"]

    def inputs_of(self, unit: Unit) -> tuple[tuple[str, str], ...]:
        """Return what stands for the inputs of a matrix: equal where it shares them with others."""
        return tuple(self._inputs.get(key_of(unit), ()))

    def hessian(self, unit: Unit) -> Tensor | None:
        """Return the mean of x xᵀ, weighted, float32 [C, C]; None where nothing came back."""
        total, weight = None, 0.0
        for artefact, place in self.inputs_of(unit):
            with self._work.open(artefact) as handle:
                own = unpack_moment(place, handle.get_tensor)
                share = float(handle.get_tensor(place.replace("inputs/", "weights/")))
            total = own.mul_(share) if total is None else total.add_(own, alpha=share)
            weight += share
        return None if total is None else total.div_(weight)

    def output_moment(self, unit: Unit) -> Tensor | None:
        """Return E[g gᵀ] of the outputs of a matrix, float32 [R, R]; None where R is large."""
        name = f"outputs/{key_of(unit)}"
        if name not in self._outputs:
            return None
        with self._work.open(self._outputs[name]) as handle:
            return unpack_moment(name, handle.get_tensor)
