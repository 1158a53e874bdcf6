"""A work directory that two files were made with, one of them evaluated; nothing is run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bitquilt.evaluation.eval_file import save_beside, sha256
from bitquilt.evaluation.figures import DomainFigures
from bitquilt.evaluation.results import (
    EngineCheck,
    Evaluation,
    FileResult,
    NoiseFloor,
    TextSample,
)
from bitquilt.evaluation.wikitext import ConfidenceFigures, WikitextFigures, WithError
from bitquilt.metrics import teacher
from bitquilt.metrics.kl import Estimate
from bitquilt.models import open_checkpoint
from bitquilt.report.run_record import OutputRecord, save
from bitquilt.runtime.workdir import WorkDir
from bitquilt.targets import GGUF, MLX
from tests.targets.conftest import Model


def quantized(original: Path, path: Path, qtype: str = "Q8_0") -> Path:
    """Write a file of an original, every matrix on one type; its name says the format."""
    model = Model(original, open_checkpoint(original))
    recipe = json.dumps({"default": qtype})
    path.unlink(missing_ok=True)
    target = GGUF if path.suffix == GGUF.suffix else MLX
    target.write(model.checkpoint, model.on(qtype), model.packed, path, recipe)
    return path


SETTINGS = {
    "model": "tiny",
    "checkpoint": "c" * 64,
    "calibration": "d" * 64,
    "windows": {"calibration": 4, "window": 32},
    "rounding": ["full", 1],
    "versions": {"bitquilt": "0.1.0", "torch": "2.13.0"},
}
MIX = {
    "model.embed_tokens": "Q6_K",
    "model.layers.0.self_attn.q_proj": "Q4_K",
    "model.layers.0.mlp.down_proj": "IQ2_S",
    "model.layers.1.self_attn.q_proj": "Q3_K",
    "model.layers.1.mlp.down_proj": "Q8_0",
}
BREAKDOWN = {"codes": 700, "scales": 100, "embedding": 150, "norms": 10, "tokenizer": 40}


def estimate(mean: float) -> Estimate:
    return Estimate(mean, 0.8 * mean, 1.2 * mean)


def figures(kl: float) -> DomainFigures:
    return DomainFigures(
        kl=estimate(kl),
        kl_median=estimate(kl / 9),
        kl_999=estimate(30 * kl),
        agreement=estimate(0.9),
        flips=estimate(0.04),
        perplexity=estimate(5.4321),
        perplexity_ratio=estimate(1.0311),
        bits_per_byte=estimate(0.654),
        tokens=65_774,
        documents=234,
    )


def protocol_figures(text: str) -> WikitextFigures:
    """What llama-perplexity would print."""
    return WikitextFigures(
        text=text,
        perplexity=WithError(12.5, 0.25),
        original_perplexity=WithError(12.25, 0.24),
        log_ratio=WithError(0.0202, 0.001),
        kl=WithError(0.011, 0.0003),
        kl_median=0.004,
        kl_999=0.25,
        kl_max=3.5,
        rms_dp=WithError(0.021, 0.001),
        same_top=WithError(0.945, 0.002),
        by_confidence=[
            ConfidenceFigures(
                low=0.9, high=0.99, kl=WithError(0.002, 0.0001), same_top=0.99, tokens=1020
            )
        ],
        tokens=1020,
    )


def evaluation(path: Path, kl: float) -> Evaluation:
    by_domain = {
        "unlike": figures(kl),
        "like": figures(kl / 3),
        "code": figures(2 * kl),
        "traces": figures(kl / 20),
    }
    sample = TextSample(
        question="What is <2> + 2?", original="It is 4, surely.", answer="It is 5, surely."
    )
    file = FileResult(
        name=path.name,
        path=str(path),
        nbytes=1000,
        sha256=sha256(path),
        bits=4.5,
        bits_on_disk=5.25,
        engine="llama.cpp",
        figures=by_domain,
        check=EngineCheck(
            in_engine=estimate(kl),
            in_torch=estimate(kl - 1e-4),
            apart=estimate(1e-4),
            between=estimate(2e-3),
            tokens=3042,
        ),
        samples=[sample],
    )
    return Evaluation(
        original="tiny",
        fingerprint="c" * 64,
        text="e" * 64,
        own=by_domain,
        files=[file],
        floors=[NoiseFloor(name="BF16 in llama.cpp", kl=estimate(3.3e-5), tokens=3042)],
        comparisons=[],
        versions={"bitquilt": "0.1.0", "xllamacpp": "1"},
        seconds=1.0,
    )


def closing(kl: float, perplexity: float) -> teacher.HeldOutFigures:
    """Figures of quantize's end: on like text the KL is half of that on unlike text, and the
    perplexity a third more.
    """
    unlike = teacher.Figures(
        kl=estimate(kl),
        agreement=estimate(kl),
        perplexity=estimate(perplexity),
        engine="torch",
        tokens=512,
        documents=12,
    )
    like = replace(unlike, kl=estimate(kl / 2), perplexity=estimate(perplexity * 4 / 3))
    return teacher.HeldOutFigures(unlike=unlike, like=like)


def record(path: Path, kl: float) -> OutputRecord:
    return OutputRecord(
        model="tiny",
        path=path,
        target="gguf",
        nbytes=1000,
        bits=4.5,
        bits_on_disk=5.25,
        allocation=MIX,
        breakdown=BREAKDOWN,
        closing=closing(kl, perplexity=kl),
        original=closing(0.0, perplexity=4.987),
        text="f" * 64,
        fingerprint="c" * 64,
        sha256=sha256(path),
        command=f"bitquilt quantize tiny -o {path.parent}",
    )


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """The directory; its files are beside it."""
    with WorkDir(tmp_path / "tiny.work", SETTINGS) as directory:
        for name, kl in (("tiny-4.5bit.gguf", 0.0359), ("tiny-Q4_K_M.gguf", 0.0519)):
            path = tmp_path / name
            path.write_bytes(name.encode())
            save(directory, record(path, kl))
    save_beside(evaluation(tmp_path / "tiny-4.5bit.gguf", 0.0355))
    return tmp_path / "tiny.work"


def write_history(work: Path) -> None:
    """What two runs leave: measurements, and the best so far; either was cut short."""
    lines = [
        {"mix": "A", "windows": [0], "kl": [[0.2, 0.1]], "tokens": 512},
        {"best": "A", "file": "4.5bit", "bytes": 990, "at": 0.15, "tokens": 512},
        {"mix": "B", "windows": [0], "kl": [[0.1, 0.02]], "tokens": 1024},
        {"best": "B", "file": "4.5bit", "bytes": 990, "at": 0.06, "tokens": 1024},
    ]
    folder = work / "search"
    folder.mkdir()
    first, then = ("\n".join(json.dumps(line) for line in part) for part in (lines[:2], lines[2:]))
    cut = '\n{"mix": "C", "win'
    (folder / "history-gguf-64.jsonl").write_text(f"{first}{cut}\n\n{then}{cut}")
