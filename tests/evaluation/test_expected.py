"""The stages of an evaluation are known before it."""

from __future__ import annotations

import pytest

from bitquilt.calibration.text import encoder
from bitquilt.evaluation.compare import evaluate
from bitquilt.evaluation.config import EvalConfig, TraceConfig
from bitquilt.evaluation.expected import expected_stages
from bitquilt.evaluation.model_file import ModelFile
from bitquilt.evaluation.wikitext import ProtocolText
from bitquilt.forecast.machine import PassSpeed
from bitquilt.models import open_checkpoint
from bitquilt.targets import GGUF
from tests.factories import tiny_checkpoint
from tests.progress import Kinds
from tests.targets.conftest import Model

STATED = PassSpeed(block=1e-5, fast_block=1e-5, head=1e-5)


@pytest.mark.parametrize("answers", [3, 0])
def test_every_stage_of_an_evaluation_was_expected_in_its_order(tmp_path, monkeypatch, answers):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    source = tiny_checkpoint(tmp_path)
    model = Model(source, open_checkpoint(source))
    path = tmp_path / "four.gguf"
    GGUF.write(model.checkpoint, model.on("Q4_0"), model.packed, path, "{}")
    wiki = tmp_path / "wiki.raw"
    wiki.write_text(" The model reads a text .\n" * 200)
    config = EvalConfig(
        against=source,
        wikitext=wiki,
        tokens=3072,
        work_dir=tmp_path / "work",
        traces=TraceConfig(count=answers, shown=1),
    )
    protocol = ProtocolText.of(wiki, encoder(model.checkpoint)).tokens.numel()
    assert protocol >= 1024
    files = ModelFile.several(path)
    expected = expected_stages(model.checkpoint, files, config, STATED, protocol)
    progress, again = Kinds(), Kinds()
    evaluate(path, config, progress=progress)
    assert progress.kinds == [stage.kind for stage in expected]
    seconds = (model.checkpoint.layers * 1e-5 + 1e-5) / model.checkpoint.weights_per_token
    for stage, (total, done) in zip(expected, progress.units, strict=True):
        assert stage.seconds == pytest.approx(total * seconds, rel=0.1), stage.kind
        if stage.kind not in ("writing", "answers"):  # an answer may end early
            assert done == pytest.approx(total, rel=0.05), stage.kind
    evaluate(path, config, progress=again)
    assert again.kinds == [kind for kind in progress.kinds if kind not in ("writing", "noise")]
