"""The KL of a file in the closing table is that of its numbers in transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bitquilt
from bitquilt import UserError
from bitquilt.bases.importance import BaseModel, load_transformers_model, match_base
from bitquilt.bases.two_steps import TwoStepModel
from bitquilt.calibration.text import HeldOutText
from bitquilt.converted.closing import BaseClosing
from bitquilt.converted.formats import FORMATS
from bitquilt.errors import EngineMissingError
from bitquilt.runtime.progress import Silent
from bitquilt.targets import GGUF, Target
from tests.bases.models import needs_converter, unknown_checkpoint
from tests.bases.parity import decoded_model
from tests.factories import VOCABULARY
from tests.progress import Recorded
from tests.quick import QUICK

QUIET = {"progress": Silent(), **{k: QUICK[k] for k in ("text_budget", "calibration", "held_out")}}
TOKENS = torch.randint(0, VOCABULARY - 6, (4, 24), generator=torch.Generator().manual_seed(0))
TEXT = HeldOutText(tokens=TOKENS, owners=torch.arange(4)[:, None].expand(4, 24), unlike=1)


def divergences(model: nn.Module, other: nn.Module) -> np.ndarray:
    """KL of each predicted token, [N, L - 1]: the definition, of whole windows."""

    def log_p(one: nn.Module) -> Tensor:
        with torch.inference_mode():
            return one(TOKENS, use_cache=False).logits[:, :-1].double().log_softmax(-1)

    p, q = log_p(model), log_p(other)
    return (p.exp() * (p - q)).sum(-1).numpy()


# scaled logits, experts, joins, capped and tied ones, convolutions, one that sees, and one whose
# class names an inner model that it lacks
@pytest.mark.parametrize(
    ("kind", "target", "least"),
    [
        ("granite", "gguf", 0),
        ("qwen3_moe", "gguf", 1 << 20),
        ("qwen3_moe", "mlx", 0),
        ("phi3", "gguf", 0),
        ("gemma2", "gguf", 0),
        ("lfm2", "mlx", 1 << 20),
        ("mistral3", "gguf", 0),
        ("llama4_text", "gguf", 0),
    ],
)
@needs_converter
def test_the_kl_of_a_file_is_that_of_its_numbers_in_transformers(
    kind: str, target: str, least: int, tmp_path: Path
) -> None:
    directory = unknown_checkpoint(tmp_path, kind, torch.bfloat16)
    (made,) = bitquilt.quantize_base(directory, bits=5, to=target, output=tmp_path, **QUIET)
    (path,) = made.paths
    config = bitquilt.QuantizeConfig(bits=5, to=target, output=tmp_path)
    base = FORMATS[target].open(made.source, "made", config)
    model = load_transformers_model(directory, least=least)
    partners = match_base(base.numbers, made.source, model, directory)
    closing = BaseClosing(model, TEXT, Silent())
    read = closing.read(partners, base.decoded(path), path.name, Silent())
    found = closing.figures(read)
    truth = load_transformers_model(directory)
    decoded = decoded_model(BaseModel(made.source, truth, partners), path)
    wanted = divergences(truth, decoded)
    assert wanted.mean() > 0.001
    assert found.unlike is not None
    assert found.like is not None
    if target == "gguf":
        assert found.unlike.kl.mean == pytest.approx(wanted[:1].mean(), rel=1e-3)
        assert found.like.kl.mean == pytest.approx(wanted[1:].mean(), rel=1e-3)
    else:  # decoded to bfloat16, on whose last digits a router's choice for a token may hang
        apart = np.abs(np.reshape(read.kl, wanted.shape) - wanted)
        assert np.quantile(apart, 0.9) < 0.1 * wanted.mean()
    assert divergences(model, truth).max() < 1e-9  # it has its own numbers again
    assert closing.original.headline.kl.mean == 0


@needs_converter
def test_what_was_measured_is_in_the_result(tmp_path: Path) -> None:
    directory = unknown_checkpoint(tmp_path, "granite", torch.bfloat16)
    made = bitquilt.quantize_base(directory, bits=(5, 8), output=tmp_path, **QUIET)
    five, eight = (one.figures.headline.kl.mean for one in made)
    assert 0 < eight < five / 4
    engine = made[0].engine
    assert engine.in_engine.tokens == engine.in_torch.tokens > 100
    assert engine.in_engine.kl.mean == pytest.approx(engine.in_torch.kl.mean, rel=0.1)
    read = made[0].to_dict()
    assert read["engine"]["in_engine"]["kl"]["mean"] == engine.in_engine.kl.mean
    assert read["figures"]["unlike"]["kl"]["mean"] == five
    assert read["original"]["like"]["perplexity"]["mean"] > 1


class Other(AbstractContextManager["Other"]):
    """An engine that expects something else, and has a few tokens more than the model."""

    def __init__(self, *_: object) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def logits(self, tokens: np.ndarray) -> Iterator[np.ndarray]:
        made = np.random.default_rng(0).normal(size=(*tokens.shape, VOCABULARY + 8))
        yield from made.astype(np.float32)


@needs_converter
def test_an_engine_that_computes_something_else_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(GGUF), "open_engine", Other)
    directory = unknown_checkpoint(tmp_path, "granite", torch.bfloat16)
    options = {**QUIET, "progress": (said := Recorded())}
    (made,) = bitquilt.quantize_base(directory, bits=8, output=tmp_path, **options)
    assert made.paths[0].exists()
    assert made.engine.in_engine.kl.mean > 0.1 > made.engine.in_torch.kl.mean
    assert "its code of this architecture computes something else" in said.lines[-1]


@needs_converter
@pytest.mark.parametrize(
    ("error", "note"),
    [
        (EngineMissingError("there is no llama.cpp"), "not run: there is no llama.cpp"),
        (UserError("it is too new"), "llama.cpp cannot run it: it is too new"),
    ],
)
def test_files_stay_where_no_engine_runs_them(
    error: UserError, note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, opens = [], type(GGUF).open_engine

    def fails(target: Target, path: Path) -> object:
        opened.append(path)
        if len(opened) == 1 and not isinstance(error, EngineMissingError):
            return opens(target, path)  # the base is tried before
        raise error

    monkeypatch.setattr(type(GGUF), "open_engine", fails)
    directory = unknown_checkpoint(tmp_path, "granite", torch.bfloat16)
    options = {**QUIET, "progress": (said := Recorded())}
    (made,) = bitquilt.quantize_base(directory, bits=5, output=tmp_path, **options)
    assert made.paths[0].exists()
    assert made.engine is None
    assert made.figures.headline.kl.mean > 0
    assert said.lines[-1] == f"granite-5bit.gguf: {note}"


class Doubled(nn.Module):
    """A model whose logits need its input tokens, too."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        self.base_model, self.get_output_embeddings = model.base_model, model.get_output_embeddings

    def forward(self, tokens: Tensor, **options: bool) -> object:
        read = self.model(tokens, **options)
        read.logits = read.logits + tokens[..., None]
        return read


def test_logits_of_more_than_hidden_states_are_refused(tmp_path: Path) -> None:
    model = load_transformers_model(unknown_checkpoint(tmp_path, "granite"))
    with pytest.raises(UserError, match="transformers' Doubled computes its logits from more"):
        TwoStepModel(Doubled(model), TOKENS)
