"""A model that bitquilt has no tables of, from its base to files that the report and the card know.

:mod:`bitquilt.converted` makes the files; what they are is noted in the work directory, as
:mod:`bitquilt.pipeline` does of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitquilt.calibration import corpus
from bitquilt.calibration.text import held_out_documents
from bitquilt.config import QuantizeConfig
from bitquilt.converted.formats import FORMATS
from bitquilt.converted.quantize_base import ConvertedResult, ConvertedRun, converted_run
from bitquilt.evaluation.eval_file import sha256
from bitquilt.evaluation.file_format import format_of
from bitquilt.report.run_record import OutputRecord, save
from bitquilt.runtime.options import command
from bitquilt.runtime.progress import Progress
from bitquilt.streaming.from_base import stream_base
from bitquilt.targets import parse_targets
from bitquilt.targets.layout import bits_per_weight


def quantize_base(
    model: str | Path,
    config: QuantizeConfig | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> list[ConvertedResult]:
    """Quantize any model that transformers and the format's converter know.

    The bases, the importance matrix and the work directory stay beside the files, for comparing
    and for other sizes. A base that is newer than the model's weights is used again.

    Args:
        model: hub id or Hugging Face directory.
        config: what is wanted; its ``base`` is a GGUF file that was converted already.
        progress: told what goes on; stderr if not given.
        options: fields of :class:`bitquilt.QuantizeConfig`, instead of a config.

    Returns:
        A result for each format and budget.

    Raises:
        UserError: bad input, no converter, a size that cannot be met: one sentence.
    """
    config, progress = QuantizeConfig.of(config, options), progress or Progress()
    config.refuse_unused_by_a_base()
    formats = [FORMATS[target.name] for target in parse_targets(config.to)]
    if config.rounding == "nearest" and all(one.streams_nearest for one in formats):
        return [ConvertedResult(**vars(one)) for one in stream_base(model, config, progress)]
    made = []
    with converted_run(model, config, progress) as run:
        for one in run.results():
            _keep(run, one, command("quantize", str(model), config))
            made.append(one)
    return made


def _keep(run: ConvertedRun, made: ConvertedResult, asked: str) -> None:
    """Note a file that was measured in the work directory."""
    if made.figures is None or made.original is None:
        return
    (path,), plan, target = made.paths, made.plan, format_of(made.paths[0])
    save(
        run.work,
        OutputRecord(
            model=run.checkpoint.name,
            path=path.resolve(),
            target=target.name,
            nbytes=plan.nbytes,
            bits=plan.bits,
            bits_on_disk=bits_per_weight(plan.nbytes, target.count_weights(path)),
            allocation={name.removesuffix(".weight"): one for name, one in plan.types.items()},
            breakdown=run.bases[target.name].breakdown(plan.types),
            closing=made.figures,
            original=made.original,
            text=corpus.fingerprint(held_out_documents(run.config.held_out)),
            fingerprint=run.checkpoint.fingerprint,
            sha256=sha256(path),
            command=asked,
        ),
    )
