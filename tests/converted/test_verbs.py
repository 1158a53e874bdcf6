"""What people do with files of a model that has no tables, after they made them."""

from __future__ import annotations

import json
import re
import shutil
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
from bitquilt.converted.formats.mlx_directory import MlxDirectory
from bitquilt.evaluation.text import held_out
from bitquilt.models import open_original
from bitquilt.report import publish
from bitquilt.report.card import Publication, model_card
from bitquilt.report.config import PublicationConfig
from bitquilt.report.page import make_report
from bitquilt.runtime.progress import Silent
from tests.bases.models import needs_converter, unknown_checkpoint
from tests.bases.parity import decoded_model
from tests.quick import QUICK, invoke

pytestmark = needs_converter
QUIET = {"progress": Silent(), **{k: QUICK[k] for k in ("text_budget", "calibration", "held_out")}}


@dataclass(frozen=True)
class Files:
    """A granite model, and files of it."""

    source: Path
    gguf: Path
    mlx: Path

    @property
    def weights(self) -> int:
        """All weights of the model."""
        return sum(one.numel() for one in load_transformers_model(self.source).parameters())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("verbs")
    source = unknown_checkpoint(folder, "granite", torch.bfloat16)
    made = bitquilt.quantize_base(source, bits=5, to="both", output=folder, **QUIET)
    (gguf,), (mlx,) = (one.paths for one in made)
    return Files(source, gguf, mlx)


def test_bench_counts_all_weights(files: Files) -> None:
    load = {"prompt": (32,), "batch": (1,), "answer": 16, "rounds": 1}
    found = bitquilt.bench([files.gguf, files.mlx], progress=Silent(), **load)
    for one in found.speeds:
        used = one.of_flops * found.machine.flops / one.prompt_rate
        assert used == pytest.approx(2 * files.weights)


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


def published(files: Files, *paths: Path) -> Publication:
    config = PublicationConfig(against=files.source, repository="me/granite-GGUF")
    return publish.publication(paths, config)


def test_a_card_has_the_figures_that_quantize_left(files: Files, tmp_path: Path) -> None:
    (files.source / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    moved = tmp_path / files.gguf.name  # with its work directory, and without an evaluation
    shutil.copytree(files.gguf.with_name("granite.work"), tmp_path / "granite.work")
    shutil.copy(files.gguf, moved)
    publication = published(files, moved)
    assert publication.not_measured == []
    (record,) = publication.records.values()
    card = model_card(publication)
    assert "license: apache-2.0" in card
    assert f"{record.closing.unlike.kl.mean:.3g} nats per token from the original" in card
    bits = 8 * moved.stat().st_size / files.weights
    assert f"| {moved.stat().st_size:,} | {record.bits:.3f} | {bits:.3f} |" in card
    assert "bitquilt quantize granite --bits 5 --to both" in card
    assert sum(record.breakdown.values()) == record.nbytes == moved.stat().st_size


def test_a_card_has_the_figures_of_eval_where_there_are_some(
    files: Files, found: Evaluation
) -> None:
    (files.source / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    card = model_card(published(files, files.mlx))
    assert "Measured by `bitquilt eval` with" in card
    assert f"{found.files[1].overall.kl.mean:.3g} nats per token" in card


def test_all_that_belongs_to_a_directory_is_published(files: Files, found: Evaluation) -> None:
    (files.source / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    listed = {entry.name for entry in publish.entries(published(files, files.mlx))}
    assert {"README.md", "model.safetensors", "config.json", "recipe.json"} <= listed
    assert f"{files.mlx.name}.eval.json" in listed


def test_the_report_maps_the_types_of_blocks(files: Files) -> None:
    page = make_report(files.gguf.with_name("granite.work")).html
    assert files.gguf.name in page
    assert "blk.1.ffn_down: " in page


def test_a_file_of_another_model_has_no_card(files: Files, tmp_path: Path) -> None:
    other = unknown_checkpoint(tmp_path, "granite", torch.bfloat16, seed=1)
    config = PublicationConfig(against=other, repository="me/x")
    with pytest.raises(UserError, match="was not made from granite"):
        publish.publication([files.gguf], config)


@pytest.mark.parametrize("target", ["gguf", "mlx"])
def test_a_plan_of_a_preset_is_the_size_to_the_byte(
    target: str, files: Files, tmp_path: Path
) -> None:
    preset = {"gguf": "Q4_0", "mlx": "4bit-g32"}[target]
    options = {"recipe": preset, "to": target, "output": files.source.parent}
    (plan,) = bitquilt.plan_base(files.source, **options, **QUIET)  # the header has the text's name
    assert plan.exact
    if target == "gguf":  # its header is as long whoever chooses the types
        (made,) = bitquilt.quantize_base(files.source, **options, rounding="nearest", **QUIET)
        (path,) = made.paths
        assert plan.nbytes == path.stat().st_size
        assert plan.types == made.plan.types
    else:
        base = MlxDirectory(files.mlx.with_name("granite-BF16-mlx"), check=False)
        base.write(plan.types, lambda *_: None, tmp_path / "made", Silent())
        assert plan.nbytes == sum(one.stat().st_size for one in (tmp_path / "made").iterdir())


def test_a_plan_for_a_size_fits_and_is_said_to_be_a_guess(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = files.source.parent
    assert invoke("plan", files.source, "--size", "260kB", "-o", folder, "--to", "both") == 0
    said = " ".join(capsys.readouterr().out.split())
    sizes = [int(one.replace(",", "")) for one in re.findall(r": ([\d,]+) bytes on disk", said)]
    assert len(sizes) == 2
    assert all(240_000 < size <= 260_000 for size in sizes)
    assert "The types are a first guess" in said
    assert invoke("plan", files.source, "--size", "100kB", "-o", folder) == 2
    assert "is too small: the smallest possible gguf file" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["plan", "eval"])
def test_an_adapter_beside_the_weights_is_told_once(
    verb: str, files: Files, tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / files.source.name
    shutil.copytree(files.source, source)
    (source / "adapter_config.json").write_text('{"base_model_name_or_path": "somewhere/else"}')
    asked = [source, "--bits", "8", "-o", tmp_path, "--to", "both"]
    if verb == "eval":
        made = shutil.copy(files.gguf, tmp_path)
        asked = [made, "--against", source, "--text", text, "--tokens", "1024"]
        asked += ["--work-dir", tmp_path / "work"]
    assert invoke(verb, *asked) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("its adapter is left out") == 1
