"""Drafts: counted against speculative decoding that is run token by token, and through engines."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitquilt import demo
from bitquilt.engines import open_engine
from bitquilt.errors import UserError
from bitquilt.evaluation.pair import (
    DraftGain,
    PairResult,
    agreement,
    draft_gain,
    kept_a_step,
    measure_pair,
)
from bitquilt.evaluation.traces import likeliest
from bitquilt.models import open_checkpoint
from bitquilt.runtime.progress import Silent
from bitquilt.talk.prompt import compose
from bitquilt.targets import GGUF, MLX
from tests.factories import tiny_checkpoint
from tests.quick import invoke
from tests.targets.conftest import Model


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 8))
def test_tokens_a_step_are_those_of_speculative_decoding(agreeing, draft):
    written, steps = 0, 0
    while written < len(agreeing):
        for _ in range(draft):
            if written == len(agreeing) or not agreeing[written]:
                break
            written += 1  # a token of the draft is kept
        written += 1  # and the large model says one itself
        steps += 1
    assert kept_a_step(agreeing, draft) == pytest.approx(len(agreeing) / steps)


def test_a_draft_that_is_always_right_gains_what_reading_costs_less():
    gain = draft_gain([[True] * 60] * 2, 4, large=1.0, small=0.1, reading=1.1)
    assert gain.kept == pytest.approx(5)
    assert gain.speedup == pytest.approx(5 / 1.5)
    never = draft_gain([[False] * 60], 4, large=1.0, small=0.1, reading=1.1)
    assert never.speedup == pytest.approx(1 / 1.5)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("pair"), "llama", layers=1)


def test_a_model_agrees_with_its_copy(model, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    found = measure_pair(model, copy, answers=2, length=12, progress=Silent())
    assert found.agreement == 1.0
    assert found.tokens <= 2 * 12
    assert [gain.draft for gain in found.gains] == [1, 2, 3, 4, 6, 8]
    assert found.gains[0].kept == pytest.approx(2, rel=0.2)  # the last step may be cut
    assert found.best.speedup == max(gain.speedup for gain in found.gains)


def test_models_that_read_other_tokens_are_refused(model, capfd):
    with pytest.raises(
        UserError, match=r"cannot draft for .*: the two split .* into different tokens"
    ):
        measure_pair("demo", model, answers=1, length=8, progress=Silent())
    assert invoke("pair", "demo", "nowhere.gguf") == 2
    assert "nowhere.gguf" in capfd.readouterr().err


def test_the_advice_is_a_command_that_runs(model, tmp_path, capfd, monkeypatch):
    gain = DraftGain(draft=4, kept=3.0, seconds=1.0, speedup=1.5)
    found = PairResult(
        large="large.gguf",
        small="small.gguf",
        answers=1,
        tokens=9,
        agreement=0.9,
        large_rate=2.0,
        small_rate=9.0,
        gains=[gain],
    )
    monkeypatch.setattr("bitquilt.evaluation.pair.measure_pair", lambda *_: found)
    files = [tmp_path / name for name in (found.large, found.small)]
    for path in files:
        written(path, "Q8_0", GGUF)
    capfd.readouterr()
    assert invoke("pair", *files) == 0
    said = "".join(capfd.readouterr().out.split())
    assert f"1.50timesasfast:`bitquiltrun{files[0]}--draft{files[1]}`" in said
    assert invoke("pair", model, files[1]) == 0
    said = " ".join(capfd.readouterr().out.split())
    assert "1.50 times as fast; but " in said
    assert "runs in PyTorch, where no model drafts for another; make a file of it" in said


LENGTH, DRAFT = 48, 4
LLAMA_CPP = """
import json, sys, xllamacpp
large, small, most, prompts = json.load(sys.stdin)
params = xllamacpp.CommonParams()
params.model.path, params.n_parallel, params.n_ctx, params.warmup = large, 1, 1024, False
params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
draft = params.speculative.draft
draft.mparams.path, draft.n_max, draft.n_min, draft.p_min = small, most, 0, 0.0
server = xllamacpp.Server(params)
for prompt, length in prompts:
    asked = {"prompt": prompt, "n_predict": length, "temperature": 0}
    print("accepted", server.handle_completions(asked)["timings"]["draft_n_accepted"])
"""


def written(path, qtype, target):
    """The demo model on one type."""
    model = Model(demo.path(), open_checkpoint("demo"))
    target.write(model.checkpoint, model.on(qtype), model.packed, path, "{}")
    return path


def answered(large, small):
    """Prompts, answers of a large model, and where a small one agrees with them."""
    with open_engine(large) as big, open_engine(small) as little:
        for text in ("What is 347 + 585?", "A train takes 3 hours for 240 km. How fast is it?"):
            prompt = compose(big, [{"role": "user", "content": text}]).tokens
            with big.stream([likeliest(prompt, LENGTH)]) as stream:
                answer = [piece.token for _, piece in stream]
            yield prompt, answer, agreement(little, prompt, answer)


def test_llama_cpps_own_speculative_decoding_accepts_as_many(tmp_path):
    large = written(tmp_path / "large.gguf", "Q8_0", GGUF)
    small = written(tmp_path / "small.gguf", "Q2_K", GGUF)
    cases = list(answered(large, small))
    prompts = [(prompt, len(answer)) for prompt, answer, _ in cases]
    done = subprocess.run(
        [sys.executable, "-c", LLAMA_CPP],
        input=json.dumps([str(large), str(small), DRAFT, prompts]),
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("accepted")]
    kept = [len(same) - len(same) / kept_a_step(same, DRAFT) for _, _, same in cases]
    assert [int(count) for _, count in lines] == pytest.approx(kept)
    assert min(kept) > LENGTH / 4


@pytest.mark.skipif(importlib.util.find_spec("mlx_lm") is None, reason="mlx-lm is not installed")
def test_mlx_lms_own_speculative_decoding_accepts_as_many(tmp_path):
    import mlx.core as mx
    from mlx_lm.generate import speculative_generate_step
    from mlx_lm.utils import load_model

    paths = [written(tmp_path / f"demo-{bits}", f"{bits}bit-g64", MLX) for bits in (8, 3)]
    models = [load_model(path)[0] for path in paths]
    for model in models:
        model.set_dtype(mx.float32)
    for prompt, answer, same in answered(*paths):
        steps = speculative_generate_step(
            mx.array(prompt), *models, num_draft_tokens=DRAFT, max_tokens=len(answer)
        )
        tokens, _, drafted = zip(*steps, strict=True)
        assert list(tokens) == answer
        # the last step is cut short where all of its tokens are the draft's
        assert len(same) / kept_a_step(same, DRAFT) == pytest.approx(
            drafted.count(False) + drafted[-1]
        )
