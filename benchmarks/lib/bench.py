"""A model on text of one's choice: its matrices rounded by us and by others, and measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from bitquilt import qtypes
from bitquilt.calibration.block_moments import input_of
from bitquilt.calibration.collect import collect_statistics
from bitquilt.calibration.corpus import Document
from bitquilt.calibration.text import budget_for, calibration_windows, encoder
from bitquilt.calibration.text_budget import WINDOW
from bitquilt.metrics.kl import TokenFigures
from bitquilt.metrics.original import OriginalModel
from bitquilt.metrics.teacher import weights_metrics
from bitquilt.models.blockwise import BlockwiseModel
from bitquilt.models.checkpoint import EMBEDDING, Checkpoint
from bitquilt.qtypes.qtype import QuantType
from bitquilt.rounding.layer_bank import LayerBank
from bitquilt.rounding.round_layers import polish_layers, round_layers
from bitquilt.rounding.sequential_pass import round_sequentially
from bitquilt.rounding.tuning import distill
from bitquilt.runtime.progress import Silent
from bitquilt.runtime.workdir import WorkDir
from lib import autoround, peers
from lib.plain_moments import plain_moments

Weights = dict[str, Tensor]
"""Module path → the matrix as an engine would have it, and norms where they change."""


class Bench:
    """Holds a checkpoint, its statistics, and what the original says of held-out text."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        directory: Path,
        documents: Sequence[Document],
        held_out: tuple[Tensor, Tensor],
        methods: Sequence[str],
    ) -> None:
        """Read the calibration text, as much as ``bitquilt quantize`` reads, and the other one.

        Args:
            checkpoint: the model.
            directory: is empty; what is found goes there.
            documents: the calibration text.
            held_out: tokens and the numbers of their documents, both int64 [N, L].
            methods: of rounding, each with a bank.
        """
        self.checkpoint = checkpoint
        much = budget_for(checkpoint)
        encode = encoder(checkpoint)
        self.tokens, folds = calibration_windows(documents, encode, much.calibration, WINDOW)
        self.plain = plain_moments(checkpoint, self.tokens)
        self.banks = {}
        for method in methods:
            work = WorkDir(directory / method, {})
            self.banks[method] = LayerBank(checkpoint, work, method)
        for bank in self.banks.values():
            collect_statistics(BlockwiseModel(checkpoint), self.tokens, folds, bank.work, Silent())
        self.teacher = OriginalModel(checkpoint, bank.work).on(*held_out)
        self.blocks = [
            module for module in checkpoint.matrices if module.startswith("model.layers")
        ]

    def theirs(
        self, qtype: QuantType, embedding: QuantType, way: Callable[[QuantType, str], Tensor]
    ) -> Weights:
        """Round every matrix as a peer does."""
        return {m: way(qtype, m) for m in self.blocks} | {EMBEDDING: way(embedding, EMBEDDING)}

    def ours(self, qtype: QuantType, embedding: QuantType, method: str) -> Weights:
        """Round every matrix with our bank."""
        bank, allocation = (
            self.banks[method],
            dict.fromkeys(self.blocks, qtype) | {EMBEDDING: embedding},
        )
        wanted = {module: [on.name] for module, on in allocation.items()}
        round_layers(bank, wanted, Silent())
        polish_layers(bank, wanted, Silent())
        return {m: on.dequantize(bank.polished(m, on.name)) for m, on in allocation.items()}

    def corrected(self, qtype: QuantType, embedding: QuantType) -> Weights:
        """Round every matrix with our bank, and blocks again for those before them."""
        self.ours(qtype, embedding, "full")
        allocation = dict.fromkeys(self.blocks, qtype.name) | {EMBEDDING: embedding.name}
        done = round_sequentially(self.banks["full"], allocation, self.tokens, "full", Silent())
        return {m: qtypes.get(on).dequantize(done.packed(m, on)) for m, on in allocation.items()}

    def measured(self, weights: Weights) -> TokenFigures:
        """Compare a model of these weights with the original on the held-out text."""

        def load(name: str) -> Tensor:
            module = name.removesuffix(".weight")
            return weights[module] if module in weights else self.checkpoint.load(name)

        return weights_metrics(self.teacher, self.checkpoint, load)

    def ggml(self, qtype: QuantType, module: str) -> Tensor:
        """Round as llama-quantize does without an importance matrix."""
        return peers.ggml(qtype, self._weight(module), None)

    def ggml_with_imatrix(self, qtype: QuantType, module: str) -> Tensor:
        """Round as llama-quantize does with an importance matrix from our calibration text."""
        return peers.ggml(
            qtype, self._weight(module), self.plain[input_of(module)].diagonal().contiguous()
        )

    def toolkit(self, qtype: QuantType, module: str) -> Tensor:
        """Round by plain GPTQ as the GPTQ + GGUF toolkit does; the embedding is ggml's there."""
        if module == EMBEDDING:
            return self.ggml_with_imatrix(qtype, module)
        return peers.plain_gptq(qtype, self._weight(module), self.plain[input_of(module)])

    def mlx(self, qtype: QuantType, module: str) -> Tensor:
        """Round as ``mlx_lm.convert -q`` does."""
        return peers.mlx(qtype, self._weight(module))

    def mlx_gptq(self, qtype: QuantType, module: str) -> Tensor:
        """Round one matrix as mlx-lm's gptq does, on our Hessian."""
        if module == EMBEDDING:
            return self.mlx(qtype, module)
        return peers.mlx_gptq(qtype, self._weight(module), self.plain[input_of(module)])

    def dynamic_quant(self, qtype: QuantType, embedding: QuantType, original: Path) -> Weights:
        """Round as ``mlx_lm.dynamic_quant`` does, asked for the bits that these types make."""
        from lib import dynamic_quant

        weights = {
            module: rows * columns for module, (rows, columns) in self.checkpoint.matrices.items()
        }
        bits = qtype.bits * sum(weights[m] for m in self.blocks)
        bits += embedding.bits * weights[EMBEDDING]
        target = bits / sum(weights.values())
        mix = dynamic_quant.allocation(original, self.tokens, target)
        return {module: self.mlx(qtypes.get(name), module) for module, name in mix.items()}

    def tuned(self, qtype: QuantType, embedding: QuantType, tokens: Tensor) -> Weights:
        """Round every matrix with our bank, and tune scales and norms on windows of text."""
        self.ours(qtype, embedding, "full")
        bank = self.banks["full"]
        allocation = dict.fromkeys(self.blocks, qtype.name) | {EMBEDDING: embedding.name}
        teacher = OriginalModel(self.checkpoint, bank.work).on(tokens)
        made = distill.tune(
            self.checkpoint, allocation, bank.polished, teacher, bank.work, Silent()
        )
        norms = [name for name in self.checkpoint.shapes if name.endswith("norm.weight")]
        weights = {name.removesuffix(".weight"): made.checkpoint.load(name) for name in norms}
        for module, name in allocation.items():
            weights[module] = qtypes.get(name).dequantize(made.packed(module, name))
        return weights

    def auto_round(self, qtype: QuantType, embedding: QuantType) -> Weights:
        """Round as AutoRound does on our text; the embedding as the file's own tools do."""
        plain = self.mlx if "mlx" in qtype.targets else self.ggml_with_imatrix
        tuned = autoround.rounded(self.checkpoint, qtype, self.tokens)
        return tuned | {EMBEDDING: plain(embedding, EMBEDDING)}

    def _weight(self, module: str) -> Tensor:
        return self.checkpoint.load(f"{module}.weight")
