"""The results of runs, written into their work directory for the report to find.

``made/<file>.json`` there is one file that ``quantize`` wrote: its allocation, where its bytes are,
the closing figures, and the command.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from bitquilt import qtypes
from bitquilt.allocation.selection import Ranking
from bitquilt.errors import UserError
from bitquilt.evaluation.eval_file import load_beside, sha256
from bitquilt.evaluation.results import Evaluation, FileResult
from bitquilt.metrics.kl import Estimate
from bitquilt.metrics.teacher import HeldOutFigures
from bitquilt.models.checkpoint import Vocabulary
from bitquilt.qtypes.qtype import Allocation
from bitquilt.report.figures import KindFigures, MeasuredFile, text_name
from bitquilt.report.result import Output
from bitquilt.runtime.records import load_record, to_json
from bitquilt.runtime.workdir import AGAIN, WorkDir, require_quantized
from bitquilt.targets import get_target

FOLDER = "made"
RECORD_FORMAT = 5
"""The version of the schema; a record of another is refused."""


@dataclass(frozen=True, kw_only=True)
class OutputRecord:
    """One file that ``quantize`` wrote, and what is known of it now."""

    model: str
    """The original's name."""
    path: Path
    """The file or directory."""
    target: str
    """``gguf`` or ``mlx``."""
    nbytes: int
    """The size on disk, everything counted."""
    bits: float
    """Bits per weight of the tensors."""
    bits_on_disk: float
    """Bits per weight of everything on disk."""
    allocation: Allocation
    """Module path → type name."""
    breakdown: Mapping[str, int]
    """The file's bytes by kind."""
    closing: HeldOutFigures
    """The figures at the end of ``quantize``."""
    original: HeldOutFigures
    """The original's own figures on the same text: its perplexity."""
    text: str
    """The fingerprint of the documents that this text is from."""
    fingerprint: str
    """The fingerprint of the original."""
    sha256: str
    """The hash of the GGUF file, or of the MLX directory's model.safetensors."""
    command: str
    """The command line that makes the file again."""
    rankings: Sequence[Ranking] = ()
    """The mixes that its own was chosen from, best first, on text that no search has read."""
    evaluation: Evaluation | None = None
    """What ``bitquilt eval`` found; None if it was not asked, or about other bytes."""

    @classmethod
    def of(
        cls,
        output: Output,
        *,
        model: str,
        fingerprint: str,
        original: HeldOutFigures,
        text: str,
        breakdown: Mapping[str, int],
        command: str,
    ) -> OutputRecord:
        """Make the record of a file that was just written.

        Args:
            output: the file.
            model: the original's name.
            fingerprint: the original's fingerprint.
            original: the original's own figures on the closing text.
            text: the fingerprint of the documents of that text.
            breakdown: the file's bytes by kind.
            command: the command line that makes it again.
        """
        return cls(
            model=model,
            path=output.path.resolve(),
            target=output.target,
            nbytes=output.nbytes,
            bits=output.bits,
            bits_on_disk=output.bits_on_disk,
            allocation=output.allocation,
            breakdown=dict(breakdown),
            closing=output.figures,
            original=original,
            text=text,
            fingerprint=fingerprint,
            sha256=sha256(output.path),
            command=command,
            rankings=output.rankings,
        )

    @property
    def name(self) -> str:
        """The name for tables."""
        return self.path.name

    @property
    def label(self) -> str:
        """What was asked for, in plots: ``4.5bit``, ``Q4_K_M``, ``4bit-g64``."""
        suffix = get_target(self.target).suffix
        return self.name.removesuffix(suffix).removeprefix(f"{self.model}-")

    @property
    def measured(self) -> FileResult | None:
        """The file in its evaluation."""
        return self.evaluation.files[0] if self.evaluation else None

    @property
    def as_made(self) -> OutputRecord:
        """The file with the figures that ``quantize`` left, whatever was measured since."""
        return replace(self, evaluation=None)

    @property
    def figures(self) -> MeasuredFile:
        """What is known of the file: by the evaluation if there is one, else when it was made."""
        if self.evaluation is not None:
            return MeasuredFile.of(self.evaluation)
        own = self.original.kinds
        return MeasuredFile(
            kinds={k: KindFigures.of(f, own[k]) for k, f in self.closing.kinds.items()},
            engine=self.closing.headline.engine,
            source=text_name(self.text),
            evaluated=False,
        )

    @property
    def kl(self) -> Estimate:
        """The mean KL that files are compared by: of the evaluation if there is one, else of the
        closing figures.
        """
        return self.figures.kl

    def bits_of(self, module: str) -> float:
        """Give the bits per weight of one matrix."""
        return bits_of_type(self.allocation[module])


def bits_of_type(qtype: str) -> float:
    """Give the bits per weight of a type; a base may have matrices on one that is only copied."""
    return 16.0 if qtype == "F16" else qtypes.get(qtype).bits


def save(work: WorkDir, record: OutputRecord) -> None:
    """Write the record of a file into the run's work directory."""
    content = {"format": RECORD_FORMAT, **to_json(record)}
    del content["evaluation"]  # it is beside the file
    work.save_json(f"{FOLDER}/{record.name}", content)


def load(work_dir: Path) -> list[OutputRecord]:
    """Give the files that a work directory knows of and that are still there, by size.

    Raises:
        UserError: ``work_dir`` is not a work directory of ``quantize``, nothing of what it made is
            left, or a record was written by another version.
    """
    require_quantized(work_dir)
    paths = sorted((work_dir / FOLDER).glob("*.json"))
    records = [load_record(OutputRecord, path, RECORD_FORMAT, AGAIN) for path in paths]
    if not paths:
        raise UserError(
            f"{work_dir} has no record of a file: its run has not ended, or its files could not be "
            "measured; give that `bitquilt quantize` again"
        )
    there = [record for record in records if record.path.exists()]
    if not there:
        raise UserError(
            f"{work_dir} no longer has a file where it was written; run `bitquilt quantize` with "
            "this work directory again"
        )
    evaluated = [replace(record, evaluation=load_beside(record.path)) for record in there]
    return sorted(evaluated, key=lambda record: (record.nbytes, record.name))


def find_record(path: Path, nbytes: int, digest: str | None = None) -> OutputRecord | None:
    """Find the newest record of a file by its hash; None without one.

    The work directories beside the file and in the working directory are looked into. The file may
    have another name than ``quantize`` gave it.

    Args:
        path: the file or directory.
        nbytes: its size; a record of another size is of another file, and nothing is hashed.
        digest: its hash, where that is known already.
    """
    folders = {path.resolve().parent, Path.cwd()}
    found = [kept for folder in folders for kept in folder.glob(f"*/{FOLDER}/*.json")]
    records = []
    for kept in sorted(found, key=lambda one: one.stat().st_mtime, reverse=True):
        with suppress(UserError):  # of another version
            records.append(load_record(OutputRecord, kept, RECORD_FORMAT, AGAIN))
    candidates = [record for record in records if record.nbytes == nbytes]
    if not candidates:
        return None
    own = digest or sha256(path)
    return next((record for record in candidates if record.sha256 == own), None)


def published_command(command: str, reference: str, trimmed: Vocabulary | None = None) -> str:
    """Give a record's command for other people: no folder of this machine is in it.

    Args:
        command: ``bitquilt quantize MODEL`` and options, as
            :func:`bitquilt.runtime.options.command` writes them.
        reference: what others call the model.
        trimmed: what is left of its vocabulary; a command that trims it begins with the original.
    """
    program, verb, _, *words = shlex.split(command)
    if trimmed is not None and _TRIM in words:
        reference = trimmed.original
    kept: list[str] = []
    while words:
        flag = words.pop(0)
        value = [words.pop(0)] if words and not words[0].startswith("--") else []
        if flag in _FILES:
            value = [Path(one).name for one in value]
        if flag == _TRIM:
            value = [",".join(Path(word).name for word in value[0].split(","))]
        if flag not in _PLACES:
            kept += [flag, *value]
    return shlex.join([program, verb, reference, *kept])


_PLACES = ("--output", "--work-dir", "--ray")
"""Options that say where the work is done, which changes nothing in the file."""
_TRIM = "--trim"
_FILES = ("--recipe", "--calibration", "--cells", "--held-out", "--imatrix", "--base")
"""Options whose value may be a path."""
