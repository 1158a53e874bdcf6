"""What people do with files of a model that has no tables, after they made them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from torch import Tensor, nn

import bitquilt
from bitquilt import Evaluation, TraceConfig, UserError
from bitquilt.bases import converter
from bitquilt.bases.base_file import BaseMatrices
from bitquilt.bases.importance import BaseModel, load_transformers_model, match_base
from bitquilt.calibration import corpus
from bitquilt.calibration.text import encoder
from bitquilt.calibration.text_budget import WINDOW
from bitquilt.evaluation.text import held_out
from bitquilt.models import open_original
from bitquilt.runtime.progress import Silent
from tests.bases.models import needs_converter, unknown_checkpoint
from tests.bases.parity import decoded_model
from tests.quick import QUICK

pytestmark = needs_converter
QUIET = {"progress": Silent(), **{k: QUICK[k] for k in ("text_budget", "calibration", "held_out")}}


@dataclass(frozen=True)
class Files:
    """A granite model, and files of it."""

    source: Path
    gguf: Path
    mlx: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("verbs")
    source = unknown_checkpoint(folder, "granite", torch.bfloat16)
    made = bitquilt.quantize_base(source, bits=5, to="both", output=folder, **QUIET)
    (gguf,), (mlx,) = (one.paths for one in made)
    return Files(source, gguf, mlx)


def test_bench_counts_all_weights(files: Files) -> None:
    whole = sum(one.numel() for one in load_transformers_model(files.source).parameters())
    load = {"prompt": (32,), "batch": (1,), "answer": 16, "rounds": 1}
    found = bitquilt.bench([files.gguf, files.mlx], progress=Silent(), **load)
    for one in found.speeds:
        used = one.of_flops * found.machine.flops / one.prompt_rate
        assert used == pytest.approx(2 * whole)


def test_one_file_drafts_for_another(files: Files) -> None:
    found = bitquilt.measure_pair(files.mlx, files.gguf, answers=1, length=8, progress=Silent())
    assert 1 <= found.tokens <= 8


def log_p(model: nn.Module, tokens: Tensor) -> Tensor:
    """Logarithms of probabilities [N, L - 1, V] of next tokens."""
    with torch.inference_mode():
        read: Tensor = model(tokens, use_cache=False).logits[:, :-1]
    return read.double().log_softmax(-1)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two documents and two questions."""
    asked = [{"messages": [{"role": "user", "content": f"What is {n}?"}]} for n in range(2)]
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    lines = [QUICK["held_out"].read_text("utf-8"), *map(json.dumps, asked)]
    path.write_text("\n".join(lines), "utf-8")
    return path


@pytest.fixture(scope="module")
def found(files: Files, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return bitquilt.evaluate(
        [files.gguf, files.mlx],
        against=files.source,
        text=text,
        tokens=1024,
        traces=TraceConfig(count=2, shown=1),
        work_dir=tmp_path_factory.mktemp("work"),
        progress=Silent(),
    )


def test_figures_are_those_of_a_files_numbers_in_transformers(
    files: Files, text: Path, found: Evaluation
) -> None:
    encode = encoder(open_original(files.source))
    read = held_out(corpus.from_file(text), encode, 1024, WINDOW, Silent())
    model, base = load_transformers_model(files.source), files.gguf.with_name("granite-BF16.gguf")
    partners = match_base(BaseMatrices(base), base, model, files.source)
    truth = log_p(model, read.tokens)
    log_q = log_p(decoded_model(BaseModel(base, model, partners), files.gguf), read.tokens)
    wanted = (truth.exp() * (truth - log_q)).sum(-1)[torch.from_numpy(read.scored)].mean()
    in_llama_cpp = next(iter(found.files[0].figures.values()))
    assert in_llama_cpp.tokens == read.scored.sum()
    assert in_llama_cpp.kl.mean == pytest.approx(float(wanted), rel=0.05)


def test_engines_agree_with_transformers_and_noise_is_the_bases(found: Evaluation) -> None:
    for one in found.files:
        assert one.check.agree
        assert one.check.in_torch.mean > 0.01
        assert one.check.in_engine.mean == pytest.approx(one.check.in_torch.mean, rel=0.1)
        assert one.figures["traces"].kl.mean > 0
        assert len(one.samples) == 1
    assert [one.name for one in found.floors] == ["BF16 in llama.cpp", "BF16 in mlx-lm"]
    assert all(0 < one.kl.mean < 0.01 for one in found.floors)


def test_bits_are_of_the_files_own_weights(files: Files, found: Evaluation) -> None:
    tensors = GGUFReader(files.gguf).tensors
    nbytes = sum(int(one.n_bytes) for one in tensors)
    assert found.files[0].bits == 8 * nbytes / sum(int(one.n_elements) for one in tensors)
    assert found.files[1].bits == pytest.approx(5, rel=0.01)


def test_a_file_of_another_model_is_refused(files: Files, tmp_path: Path) -> None:
    other = unknown_checkpoint(tmp_path, "granite", torch.bfloat16, seed=1)
    with pytest.raises(UserError, match="was not made from granite: no matrix of it has values"):
        bitquilt.evaluate(files.gguf, against=other, tokens=1024, progress=Silent())


def test_without_base_and_converter_the_place_of_a_base_is_told(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = tmp_path / files.gguf.name
    alone.write_bytes(files.gguf.read_bytes())
    monkeypatch.delenv(converter.CHECKOUT, raising=False)
    monkeypatch.setattr(converter, "converter_directory", lambda: tmp_path / "none")
    with pytest.raises(UserError, match=r"put the file at \S+granite-BF16\.gguf, or give"):
        bitquilt.evaluate(alone, against=files.source, tokens=1024, progress=Silent())
