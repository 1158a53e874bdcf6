"""The original of files of a model that bitquilt has no tables of: transformers runs it.

Its base, which the format's own converter made, lies beside the files or is made there. It tells
which matrix of a file is which parameter, shows what the engine's arithmetic adds when nothing is
quantized, and writes the original's answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from bitquilt.bases.importance import load_transformers_model, match_base
from bitquilt.bases.partners import Partner
from bitquilt.bases.two_steps import TRIED_LOGITS, TwoStepModel
from bitquilt.config import QuantizeConfig
from bitquilt.converted.formats import FORMATS
from bitquilt.converted.formats.base_format import BaseFormat
from bitquilt.engines import Engine
from bitquilt.errors import UserError
from bitquilt.evaluation.config import EvalConfig
from bitquilt.evaluation.model_file import ModelFile, TorchModel
from bitquilt.evaluation.original import CanonicalOriginal, Original
from bitquilt.gguf.header_only import is_given
from bitquilt.metrics.original import OriginalModel
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.runtime.job import ExpectedStage
from bitquilt.runtime.progress import Progress
from bitquilt.runtime.workdir import WorkDir
from bitquilt.targets import Target


@dataclass(frozen=True)
class MatchedFormat:
    """A base of the original in one format, and where its matrices come from."""

    base: BaseFormat
    partners: Mapping[str, Partner | None]


def original_of(
    checkpoint: Checkpoint, reference: str | Path, files: Sequence[ModelFile], progress: Progress
) -> Original:
    """Return what runs a model, whoever knows its family.

    Args:
        checkpoint: the model.
        reference: its directory or hub id.
        files: what is measured against it.
        progress: told of stages.

    Raises:
        UserError: there is no converter of a file's format, or transformers cannot run the model.
    """
    for note in checkpoint.to_be_told:
        progress.say(note)
    if checkpoint.known:
        return CanonicalOriginal(checkpoint)
    return ConvertedOriginal(checkpoint, reference, files, progress)


class ConvertedOriginal(Original):
    """A model in transformers, and its bases."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        reference: str | Path,
        files: Sequence[ModelFile],
        progress: Progress,
    ) -> None:
        """Find or make the bases beside the files, and match them with the model.

        Raises:
            UserError: see :func:`original_of`.
        """
        self.checkpoint = checkpoint
        bases: dict[Target, tuple[BaseFormat, Path]] = {}
        for file in files:
            if file.target not in bases:
                kind = FORMATS[file.target.name]
                config = QuantizeConfig(bits=8, output=file.path.resolve().parent)
                directory, path = kind.convert(reference, config, progress)
                if is_given(path):
                    raise UserError(
                        f"{config.output} has no room for {checkpoint.name} as {file.target.engine}"
                        " reads it unquantized, and files are measured against that; free space"
                    )
                bases[file.target] = kind.open(path, checkpoint.name, config), directory
        with progress.stage(f"Matching {checkpoint.name} with its base", 1, "matching"):
            _, directory = next(iter(bases.values()))
            model = load_transformers_model(directory)
            self._formats = {
                target: MatchedFormat(base, match_base(base.numbers, base.path, model, directory))
                for target, (base, _) in bases.items()
            }
            few = torch.zeros(1, TRIED_LOGITS, dtype=torch.int64)
            self._two = TwoStepModel(model, few)
            progress.advance()
        self.head_weights = self._two.head_weights
        self.weights_per_token = self._two.weights + self._two.head_weights

    def reading(self, work: WorkDir) -> OriginalModel:
        return OriginalModel(self.checkpoint, work, self._two)

    def with_file(self, file: ModelFile) -> TorchModel:
        matched = self._formats[file.target]
        stored = {one.name: one.rows * one.columns for one in file.target.stored(file.path)}
        for name, matrix in matched.base.matrices.items():
            if stored.get(name.removesuffix(".weight")) != matrix.weights:
                raise UserError(
                    f"{file.path} has no matrix {name} like that of {matched.base.path}, which the "
                    "converter makes of the original now; quantize the original again with "
                    "`bitquilt quantize`"
                )
        return self._two.with_file(matched.partners, matched.base.decoded(file.path))

    @property
    def halved(self) -> None:
        return None

    @contextmanager
    def unquantized(self, target: Target) -> Iterator[Path]:
        yield self._formats[target].base.path

    def speaker(self) -> AbstractContextManager[Engine]:
        target, matched = next(iter(self._formats.items()))
        return target.open_engine(matched.base.path)

    def file_speaker(self, file: ModelFile, engine: Engine) -> AbstractContextManager[Engine]:
        return nullcontext(engine)

    def stages(
        self, files: Sequence[ModelFile], config: EvalConfig, protocol: int
    ) -> list[ExpectedStage]:
        return []
