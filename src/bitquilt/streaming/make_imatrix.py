"""``bitquilt imatrix``: an importance matrix of a model that bitquilt can run, for any tool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitquilt.calibration.importance import collect_importance
from bitquilt.calibration.text import (
    budget_for,
    calibration_documents,
    encoder,
    token_windows,
)
from bitquilt.config import ImatrixConfig
from bitquilt.errors import UserError
from bitquilt.gguf.imatrix import (
    LEGACY_SUFFIX,
    ImportanceMatrix,
    read_imatrix,
    write_imatrix,
)
from bitquilt.models import open_checkpoint
from bitquilt.models.blockwise import BlockwiseModel
from bitquilt.runtime.device import computing
from bitquilt.runtime.files import atomic_write, refuse_directory, require_room
from bitquilt.runtime.progress import Progress
from bitquilt.streaming.base import base_imatrix, dataset_name, needs_base


def make_imatrix(
    model: str | Path,
    config: ImatrixConfig | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> ImportanceMatrix:
    """Run calibration text through a model, and write what its matrices read.

    The file has the names and the form of llama-imatrix's: as GGUF, or in its old form where the
    output's name ends with ``.dat``.

    Args:
        model: hub id, Hugging Face directory, GGUF file, or ``demo``.
        config: what is wanted.
        progress: told what goes on; stderr if not given.
        options: fields of :class:`bitquilt.ImatrixConfig`, instead of a config.

    Raises:
        UserError: bad input, or a file in the output's place that is not an importance matrix.
    """
    config = ImatrixConfig.of(config, options)
    progress = progress or Progress()
    path = Path(config.output)
    refuse_overwrite(path)
    with computing(config.device, config.threads):
        by_base = config.base is not None or needs_base(model)
        make = base_imatrix if by_base else _of_checkpoint
        matrix = make(model, config, progress)
    with atomic_write(path) as temporary:
        write_imatrix(temporary, matrix, legacy=path.suffix == LEGACY_SUFFIX)
    return matrix


def _of_checkpoint(
    model: str | Path, config: ImatrixConfig, progress: Progress
) -> ImportanceMatrix:
    checkpoint = open_checkpoint(str(model))
    documents, _ = calibration_documents(config.calibration)
    budget = config.text_budget or budget_for(checkpoint)
    encode = encoder(checkpoint)
    tokens = token_windows(documents, encode, budget.calibration, budget.window)
    with progress.stage("Reading calibration text", checkpoint.layers, "importance"):
        names = [dataset_name(config)]
        return collect_importance(BlockwiseModel(checkpoint), tokens, names, progress)


def refuse_overwrite(path: Path) -> None:
    """Refuse to replace anything but an importance matrix.

    Raises:
        UserError: something else is there, or nothing can be written there.
    """
    require_room(path.parent, 0)
    refuse_directory(path)
    if path.exists():
        try:
            read_imatrix(path)
        except UserError as error:
            raise UserError(
                f"{path} exists, and is not an importance matrix; give another -o, or move it"
            ) from error
