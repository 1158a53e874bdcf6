"""A base in its engine before anything long begins: does it load, and is it the model?

Letters: L tokens, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from bitquilt.bases.lent_weights import lent_weights
from bitquilt.errors import EngineMissingError, UserError
from bitquilt.gguf.header_only import is_given
from bitquilt.metrics.kl import compare_logits
from bitquilt.runtime.progress import Progress
from bitquilt.targets import TARGETS, Target

TOLD_KL = 0.005
"""KL of an unquantized base in its engine that is told, in nats per token. Activations in bfloat16
make a few ten-thousandths of it, in mlx-lm up to 0.0015 (docs/decisions/mlx-activations.md)."""
TRIAL_TOKENS = 48
"""What the engine and transformers read of a text: more than windows of tiny models."""


def try_base(
    path: Path, target: Target, model: nn.Module, tokens: Tensor, progress: Progress
) -> None:
    """Run an unquantized model in its engine, and say so where it is another there.

    A base of which only the header is written is not run, which is said.

    Args:
        path: of the base.
        target: the format that it is of.
        model: transformers' one.
        tokens: some text, int64 [L].
        progress: is told of a stage, and what is found.

    Raises:
        UserError: the engine cannot load the base, crashes on it, or computes NaN.
    """
    if is_given(path):
        progress.say(
            f"{target.engine} cannot be tried before the work, because the converted model is not "
            "written; it runs the result"
        )
        return
    few = tokens[None, :TRIAL_TOKENS]
    with progress.stage(f"Trying {path.name} in {target.engine}", 1, "trying"):
        truth = _logits(model, few)
        try:
            with target.open_engine(path) as engine:
                (read,) = engine.logits(few.numpy())
        except EngineMissingError as missing:
            progress.say(f"{path.name} is not tried: {missing}")
            return
        except UserError as error:
            raise UserError(
                f"the converted model does not run in {target.engine}, nor would any file made of "
                f"it: {error.sentence.rpartition('; ')[0] or error.sentence}; {_other_way(target)}"
            ) from error
        progress.advance()
    told = torch.from_numpy(read)[:, : truth.shape[1]]
    if not told.isfinite().all():
        raise UserError(
            f"{target.engine} computes NaN or infinity with {path}, which is not quantized yet; "
            f"{_other_way(target)}"
        )
    kl = compare_logits(few, lambda _, part: truth[part], iter([told])).kl.mean()
    if kl > TOLD_KL:
        progress.say(
            f"{target.engine} computes something else than transformers with {path.name}, which is "
            f"not quantized yet (KL {kl:.2g} nats/token): its code of this type, or the converter, "
            "differs, and files made of it will differ there as much"
        )


def _logits(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return transformers' logits, float32 [L, V] on the CPU."""
    device, lent = next(model.parameters()).device, lent_weights(model)
    with torch.inference_mode():
        read = lent.tried(lambda: model(tokens.to(device), use_cache=False))
    logits: Tensor = read.logits[0].float().cpu()
    return logits


def _other_way(target: Target) -> str:
    """Say what may help where an engine does not run a type of models."""
    others = " or ".join(f"--to={one.name}" for one in TARGETS.values() if one is not target)
    return f"give {others}, or take newer versions of {target.engine} and its converter"
