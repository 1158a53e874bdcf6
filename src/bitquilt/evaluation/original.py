"""The model that files are measured against: how torch runs it, and each file beside it.

One class runs the canonical models, block after block; for models that bitquilt has no tables of
there is another in :mod:`.converted_original`.

Letters: N windows of L tokens, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from bitquilt.engines import Engine
from bitquilt.engines.torch import TorchEngine
from bitquilt.evaluation.config import EvalConfig
from bitquilt.evaluation.expected import expected_stages
from bitquilt.evaluation.model_file import ModelFile, TorchModel
from bitquilt.forecast.machine import pass_speed
from bitquilt.metrics.original import OriginalModel
from bitquilt.models.blockwise import Advance, BlockwiseModel, ignore
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.runtime.job import ExpectedStage
from bitquilt.runtime.workdir import WorkDir
from bitquilt.targets import Target


class Original(ABC):
    """A model that files were made from."""

    checkpoint: Checkpoint
    weights_per_token: int
    """The number of weights that a token is multiplied with on its way to its logits."""
    head_weights: int
    """Those of them that are the output head's."""

    @property
    def name(self) -> str:
        """What it is called."""
        return self.checkpoint.name

    @abstractmethod
    def reading(self, work: WorkDir) -> OriginalModel:
        """Return what reads texts, and keeps in a work directory what it made of them."""

    @abstractmethod
    def with_file(self, file: ModelFile) -> TorchModel:
        """Return what computes the same with the weights that are read from a file.

        Raises:
            UserError: the file has other matrices.
        """

    @property
    @abstractmethod
    def halved(self) -> TorchModel | None:
        """The model in bfloat16; None where that would take as much memory once more."""

    @abstractmethod
    def unquantized(self, target: Target) -> AbstractContextManager[Path]:
        """Give the model as a file of a format, with its weights as they are."""

    @abstractmethod
    def speaker(self) -> AbstractContextManager[Engine]:
        """Give what writes the model's own answers."""

    @abstractmethod
    def file_speaker(self, file: ModelFile, engine: Engine) -> AbstractContextManager[Engine]:
        """Give what writes a file's answers.

        Args:
            file: the file.
            engine: it in its own engine, which is slow here.
        """

    @abstractmethod
    def stages(
        self, files: Sequence[ModelFile], config: EvalConfig, protocol: int
    ) -> list[ExpectedStage]:
        """Give the stages of an evaluation, as far as anything is known of their time.

        Args:
            files: what is measured.
            config: says on what text.
            protocol: the tokens that are read by llama-perplexity's protocol.
        """


class CanonicalOriginal(Original):
    """A model in canonical form."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.weights_per_token = checkpoint.weights_per_token
        self.head_weights = checkpoint.head_weights

    def reading(self, work: WorkDir) -> OriginalModel:
        return OriginalModel(self.checkpoint, work)

    def with_file(self, file: ModelFile) -> TorchModel:
        weights = file.target.read_weights(file.path)
        return _Blockwise(BlockwiseModel(self.checkpoint, weights.__getitem__))

    @property
    def halved(self) -> TorchModel:
        return _Blockwise(BlockwiseModel(self.checkpoint, dtype=torch.bfloat16))

    @contextmanager
    def unquantized(self, target: Target) -> Iterator[Path]:
        checkpoint = self.checkpoint
        qtype = "BF16" if checkpoint.source_dtype == "BF16" else "F32"
        dtype = torch.bfloat16 if qtype == "BF16" else torch.float32
        allocation = dict.fromkeys(checkpoint.matrices, qtype)

        def packed(module: str, _: str) -> dict[str, Tensor]:
            return {"weight": checkpoint.load(f"{module}.weight").to(dtype)}

        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / f"original{target.suffix}"
            target.write(checkpoint, allocation, packed, path, "{}")
            yield path

    def speaker(self) -> AbstractContextManager[Engine]:
        return TorchEngine(self.checkpoint)

    def file_speaker(self, file: ModelFile, engine: Engine) -> AbstractContextManager[Engine]:
        weights = file.target.read_weights(file.path)
        return TorchEngine(replace(self.checkpoint, reader=weights.__getitem__))

    def stages(
        self, files: Sequence[ModelFile], config: EvalConfig, protocol: int
    ) -> list[ExpectedStage]:
        speed = pass_speed(self.checkpoint)
        return expected_stages(self.checkpoint, files, config, speed, protocol)


class _Blockwise:
    """A canonical model that holds its head from the first logits on."""

    def __init__(self, model: BlockwiseModel) -> None:
        self._model = model

    def last_hidden(self, tokens: Tensor, advance: Advance = ignore) -> Tensor:
        return self._model.last_hidden(tokens, advance)

    @cached_property
    def _head(self) -> Tensor:
        return self._model.head()

    def logits(self, hidden: Tensor) -> Tensor:
        return (hidden.to(self._head.device) @ self._head.T).float()
