"""A work directory that two files were made with, one of them evaluated; nothing is run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitquilt.evaluation.figures import Figures
from bitquilt.evaluation.results import Check, Evaluation, Floor, Row, TextSample, keep, sha256
from bitquilt.metrics.kl import Estimate
from bitquilt.report import run_record
from bitquilt.runtime.workdir import WorkDir

SETTINGS = {
    "model": "tiny",
    "checkpoint": "c" * 64,
    "calibration": "d" * 64,
    "windows": [4, 2, 1, 2, 32],
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


def figures(kl: float) -> Figures:
    ppl = estimate(5.4321)
    return Figures(
        estimate(kl), estimate(kl / 9), estimate(30 * kl), estimate(0.9), estimate(0.04), ppl,
        estimate(1.0311), estimate(0.654), 65_774, 234,
    )  # fmt: skip


def evaluation(path: Path, kl: float) -> Evaluation:
    by_domain = {"all": figures(kl), "code": figures(2 * kl), "traces": figures(kl / 20)}
    check = Check(estimate(kl), estimate(kl - 1e-4), estimate(1e-4), estimate(2e-3), 3042)
    samples = [TextSample("What is <2> + 2?", "It is 4, surely.", "It is 5, surely.")]
    row = Row(path.name, str(path), 1000, sha256(path), 4.5, "llama.cpp", by_domain, check, samples)
    floors = [Floor("BF16 in llama.cpp", estimate(3.3e-5), 3042)]
    versions = {"bitquilt": "0.1.0", "xllamacpp": "1"}
    return Evaluation("tiny", "c" * 64, "e" * 64, by_domain, [row], floors, [], versions, 1.0)


def output(path: Path, kl: float) -> dict[str, object]:
    closing = {name: vars(estimate(kl)) for name in ("kl", "agreement", "perplexity")}
    return {
        "path": str(path),
        "target": "gguf",
        "nbytes": 1000,
        "bits": 4.5,
        "allocation": MIX,
        "figures": closing,
    }


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """The directory; its files are beside it."""
    with WorkDir(tmp_path / "tiny.work", SETTINGS) as directory:
        for name, kl in (("tiny-4.5bit.gguf", 0.0359), ("tiny-Q4_K_M.gguf", 0.0519)):
            path = tmp_path / name
            path.write_bytes(name.encode())
            run_record.save(directory, output(path, kl), BREAKDOWN)
    keep(evaluation(tmp_path / "tiny-4.5bit.gguf", 0.0355))
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
