"""What text looks up in the embeddings of a model, and what an error there costs.

Letters: R rows of a table, C columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Lookups:
    """What is looked up in the embeddings of a model, and the gradients of that."""

    def __init__(self, model: nn.Module) -> None:
        """Take the embeddings of a model, which are watched while this is entered."""
        names = {id(one): name for name, one in model.named_parameters()}
        self.columns: dict[str, Tensor] = {}
        """Parameter → Σ g² of its columns, as they are stored, float64 [C]."""
        self.tokens: dict[str, Tensor] = {}
        """Parameter → how often each row was looked up, float64 [R]."""
        self._found: list[tuple[str, Tensor, Tensor, float]] = []
        self._embeddings = [
            (module, self._hook(names[id(module.weight)], module.weight))
            for module in model.modules()
            if isinstance(module, nn.Embedding) and id(module.weight) in names
        ]
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> None:
        """Watch."""
        self._hooks = [one.register_forward_hook(hook) for one, hook in self._embeddings]

    def __exit__(self, *_: object) -> None:
        """Watch no longer."""
        for hook in self._hooks:
            hook.remove()
        self._found.clear()

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
