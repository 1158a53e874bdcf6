"""Evaluation end to end on a tiny model, against transformers on the same weights."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from transformers import AutoTokenizer

from bitquilt.calibration import corpus
from bitquilt.calibration.text import encoder
from bitquilt.calibration.text_budget import WINDOW
from bitquilt.engines.torch import TorchEngine
from bitquilt.errors import UserError
from bitquilt.evaluation.compare import evaluate
from bitquilt.evaluation.config import EvalConfig, TraceConfig
from bitquilt.evaluation.eval_file import load_beside, path_beside
from bitquilt.evaluation.model_file import ModelFile, logits_in
from bitquilt.evaluation.speed import bench
from bitquilt.evaluation.text import held_out
from bitquilt.models import open_checkpoint
from bitquilt.runtime.leftovers import find_leftovers
from bitquilt.runtime.progress import Silent
from bitquilt.runtime.records import to_json
from bitquilt.targets import GGUF, MLX
from tests.factories import tiny_checkpoint
from tests.quick import invoke
from tests.targets.conftest import Model

TOKENS = 5120
TRACES = TraceConfig(count=6, shown=2)


@pytest.fixture(scope="module", autouse=True)
def _small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def model(folder) -> Model:
    source = tiny_checkpoint(folder)
    return Model(source, open_checkpoint(source))


@pytest.fixture(scope="module")
def text(folder) -> Path:
    """Six documents of prose and six conversations."""
    random = np.random.default_rng(0)
    words = ["the", "of", "a", "model", "text", "is", "in", "for", "not", "number", "reads"]
    lines = [{"domain": "prose", "text": " ".join(random.choice(words, 900))} for _ in range(6)]
    for n in range(6):
        question = {"role": "user", "content": f"What is {n} + {n}?"}
        answer = {"role": "assistant", "content": " ".join(random.choice(words, 300))}
        lines.append({"domain": "maths", "messages": [question, answer]})
    path = folder / "text.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


@pytest.fixture(scope="module")
def files(folder, model) -> list[Path]:
    """The model on 8 and on 4 bits, and on 4 bits again under another name."""
    paths = []
    for name, qtype in (("eight", "Q8_0"), ("four", "Q4_0"), ("again", "Q4_0")):
        paths.append(folder / f"{name}.gguf")
        GGUF.write(model.checkpoint, model.on(qtype), model.packed, paths[-1], "{}")
    return paths


@pytest.fixture(scope="module")
def wiki(folder) -> Path:
    """A text for llama-perplexity's protocol: of five windows and a rest."""
    words = ["the", "of", "a", "model", "text", "is", "in", "for", "not", "number", "reads"]
    path = folder / "wiki.test.raw"
    path.write_text(" ".join(np.random.default_rng(1).choice(words, 1500)))
    return path


@pytest.fixture(scope="module")
def found(folder, model, text, wiki, files):
    return evaluate(
        files,
        against=str(model.source),
        text=text,
        wikitext=wiki,
        tokens=TOKENS,
        work_dir=folder / "work",
        traces=TRACES,
    )


def test_figures_are_those_of_transformers_on_the_same_text(found, model, text, files):
    """Every domain by itself, then the mean over them; the file's weights as they are read back."""
    read = held_out(corpus.from_file(text), encoder(model.checkpoint), TOKENS, WINDOW, Silent())
    weights = GGUF.read_weights(files[1])
    with TorchEngine(model.checkpoint) as original:
        truth = losses_and_logs(original, read.tokens)
    with TorchEngine(replace(model.checkpoint, reader=weights.__getitem__)) as student:
        loss, log_q = losses_and_logs(student, read.tokens)
    kl = (truth[1].exp() * (truth[1] - log_q)).sum(-1).numpy()
    domains = np.array(read.domain)
    for name in ("prose", "maths"):
        kept = read.scored & (domains == name)[:, None]
        figures, own = found.files[1].figures[name], found.own[name]
        assert figures.tokens == own.tokens == kept.sum()
        assert own.perplexity.mean == pytest.approx(math.exp(truth[0].numpy()[kept].mean()), 1e-4)
        nbytes = sum(map(len, decoded(model, read, domains == name)))
        assert own.bits_per_byte.mean == pytest.approx(
            truth[0].numpy()[kept].sum() / math.log(2) / nbytes, 1e-4
        )
        # llama.cpp rounds activations to 8 bits, so these are near and not equal
        assert figures.kl.mean == pytest.approx(kl[kept].mean(), rel=0.1)
        assert figures.perplexity.mean == pytest.approx(
            math.exp(loss.numpy()[kept].mean()), rel=0.02
        )
    means = [found.files[1].figures[name].kl.mean for name in ("prose", "maths")]
    assert found.files[1].figures["all"].kl.mean == pytest.approx(np.mean(means))


def test_wikitext_is_scored_in_the_second_half_of_each_window(found, model, wiki, files):
    """By llama-perplexity's protocol, on transformers' logits."""
    ids = AutoTokenizer.from_pretrained(model.source)(wiki.read_text())["input_ids"]
    count = len(ids) // 512
    tokens = torch.tensor(ids[: count * 512]).view(count, 512)
    tokens[:, 0] = ids[0]
    weights = GGUF.read_weights(files[1])
    with TorchEngine(model.checkpoint) as original:
        truth = losses_and_logs(original, tokens)
    with TorchEngine(replace(model.checkpoint, reader=weights.__getitem__)) as student:
        loss, log_q = losses_and_logs(student, tokens)
    kl = (truth[1].exp() * (truth[1] - log_q)).sum(-1)[:, 256:]
    figures = found.files[1].wikitext
    assert figures.text == "wiki.test.raw"
    assert figures.tokens == kl.numel() == count * 255 > 255
    assert figures.kl.value == pytest.approx(float(kl.mean()), rel=0.1)
    assert figures.log_ratio.value == pytest.approx(
        float((loss - truth[0])[:, 256:].mean()), abs=0.02
    )
    own = math.exp(float(truth[0][:, 256:].mean()))
    assert figures.original_perplexity.value == pytest.approx(own, rel=1e-4)
    assert sum(one.tokens for one in figures.by_confidence) == figures.tokens


def losses_and_logs(engine, tokens):
    """Losses [N, L − 1] and log-probabilities [N, L − 1, V]."""
    with torch.inference_mode():
        log_p = engine.model(tokens).logits[:, :-1].double().log_softmax(-1)
    return -log_p.gather(-1, tokens[:, 1:, None])[..., 0], log_p


def decoded(model, read, windows):
    tokenizer = AutoTokenizer.from_pretrained(model.source)
    for ids, scored in zip(read.tokens[windows, 1:], read.scored[windows], strict=True):
        yield tokenizer.decode(ids[scored], skip_special_tokens=True).encode()


def test_domains_traces_and_uncertain_tokens_apart(found):
    row = found.files[0]
    assert list(row.figures) == ["all", "maths", "prose", "traces", "traces, uncertain"]
    assert row.figures["traces"].documents == 6
    assert row.figures["traces, uncertain"].tokens < row.figures["traces"].tokens / 2
    for domain, figures in found.own.items():
        assert figures.kl.mean == 0.0, domain
        assert figures.perplexity_ratio.mean == 1.0


def test_bits_are_those_that_llama_cpp_counts(found, files):
    """As llama-quantize's BPW: the data of all tensors over all their numbers."""
    for file, path in zip(found.files, files, strict=True):
        tensors = GGUFReader(path).tensors
        count = sum(int(tensor.n_elements) for tensor in tensors)
        assert file.bits == sum(int(tensor.n_bytes) for tensor in tensors) * 8 / count
        assert file.bits_on_disk == path.stat().st_size * 8 / count


def test_clean_knows_all_that_is_kept(found, folder):
    (kept,) = find_leftovers(folder / "work", ())
    assert kept.kind == "what eval keeps about tiny-llama4_text"
    assert kept.foreign == ()


def test_more_bits_are_closer(found):
    eight, four, again = (row.figures["all"] for row in found.files)
    assert 0 < eight.kl.mean < four.kl.mean == again.kl.mean
    assert eight.agreement.mean > four.agreement.mean
    assert four.kl.low < four.kl.mean < four.kl.high
    assert eight.kl_median.mean < eight.kl.mean < eight.kl_999.mean
    assert found.files[1].figures["prose"].perplexity_ratio.mean != 1.0


def test_engine_and_torch_agree_within_the_engines_own_arithmetic(found):
    for row in found.files:
        assert row.engine == "llama.cpp"
        assert row.check.between.mean < 0.02
        assert row.check.agree
    bf16, unquantized = found.floors
    assert bf16.name == "bfloat16 in torch"
    assert unquantized.name == "F32 in llama.cpp"
    assert unquantized.kl.mean < 1e-4 < found.files[1].figures["all"].kl.mean


def test_what_the_original_says_is_kept_for_its_versions(model, text, files, tmp_path, monkeypatch):
    monkeypatch.setattr("bitquilt.evaluation.compare.user_cache_path", lambda name: tmp_path / name)
    asked = EvalConfig(against=str(model.source), text=text, tokens=TOKENS, traces=TRACES)
    first = evaluate(files[:1], asked)
    with monkeypatch.context() as patch:
        for work in ("noise_floor._half", "noise_floor._unquantized", "original.TorchEngine"):
            patch.setattr(f"bitquilt.evaluation.{work}", None)
        again = evaluate(files[:1], asked)
    assert again.floors == first.floors
    assert to_json(again.files) == to_json(first.files)
    monkeypatch.setattr("bitquilt.evaluation.compare.__version__", "0.0.0")
    assert to_json(evaluate(files[:1], asked).files) == to_json(first.files)
    assert len(list((tmp_path / "bitquilt").iterdir())) == 2


def test_a_file_without_a_template_is_measured_and_not_asked(model, text, folder):
    path = folder / "plain.gguf"
    plain = replace(model.checkpoint, chat_template=None)
    GGUF.write(plain, model.on("Q8_0"), model.packed, path, "{}")
    (row,) = evaluate(
        [path],
        against=str(model.source),
        text=text,
        tokens=TOKENS,
        work_dir=folder / "work",
        traces=TRACES,
    ).files
    assert row.samples == []
    assert row.figures["all"].kl.mean > 0


def test_an_mlx_directory_is_checked_in_mlx(model, text, wiki, folder):
    """Without Metal it reads everything in torch, and an excerpt in its engine."""
    pytest.importorskip("mlx_lm")
    path = folder / "eight-mlx"
    MLX.write(model.checkpoint, model.on("8bit-g32"), model.packed, path, "{}")
    found = evaluate(
        [path],
        against=str(model.source),
        text=text,
        wikitext=wiki,
        tokens=TOKENS,
        work_dir=folder / "work",
        traces=TRACES,
    )
    (row,) = found.files
    assert row.engine == ("mlx-lm" if sys.platform == "darwin" else "torch")
    assert 0 < row.figures["all"].kl.mean < 0.01
    assert 0 < row.wikitext.kl.value < 0.01
    assert row.check.agree
    assert row.check.between.mean < 1e-4
    assert row.samples
    assert [floor.name for floor in found.floors] == ["bfloat16 in torch", "F32 in mlx-lm"]


def test_no_winner_among_equals(found):
    (comparison,) = found.comparisons
    assert set(comparison.names) == {"four.gguf", "again.gguf"}
    assert comparison.winner is None


def test_figures_are_kept_beside_the_file_and_belong_to_its_bytes(found, files):
    (beside,) = load_beside(files[1]).files
    assert to_json(beside) == to_json(replace(found.files[1], path=None))  # NaN is not NaN
    path_beside(files[2]).write_text(path_beside(files[1]).read_text().replace("four", "again"))
    assert load_beside(files[2]).files[0].name == "again.gguf"  # the same bytes
    path_beside(files[0]).write_text(path_beside(files[1]).read_text())
    assert load_beside(files[0]) is None


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "cannot be read as JSON"),
        ("[]", "does not hold a JSON object"),
        ('{"rows": []}', "was written by another version of bitquilt"),
        ('{"format": 3, "original": 3}', "cannot be used: original is not of type str"),
        ('{"format": 3, "original": "x"}', "cannot be used: fingerprint is missing"),
    ],
)
def test_figures_that_cannot_be_read_are_one_sentence(tmp_path, content, sentence):
    model = tmp_path / "model.gguf"
    path_beside(model).write_text(content)
    with pytest.raises(UserError, match=f"{sentence}.*run `bitquilt eval model.gguf` again"):
        load_beside(model)


def test_a_file_given_twice_and_one_that_is_not_there_are_refused(files, tmp_path):
    with pytest.raises(UserError, match="is given 2 times"):
        ModelFile.several([files[0], files[0]])
    with pytest.raises(UserError, match="does not exist"):
        ModelFile.at(tmp_path / "nothing.gguf")


@pytest.mark.parametrize("kind", [str, Path])
def test_one_path_is_not_read_letter_by_letter(kind):
    with pytest.raises(UserError, match=r"none\.gguf does not exist"):
        evaluate(kind("none.gguf"), against="demo")
    with pytest.raises(UserError, match=r"none\.gguf does not exist"):
        bench(kind("none.gguf"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("demo", "demo is a model, not a quantized file of one"),
        ("facebook/MobileLLM-R1-950M", "if it is a hub id, it names a model"),
    ],
)
def test_a_model_that_is_no_quantized_file_is_named_as_such(name, words):
    with pytest.raises(UserError, match=f"{words}.*`bitquilt quantize {name} --bits 4.5` makes"):
        ModelFile.at(name)


def test_a_directory_that_can_be_quantized_is_named_as_such(model):
    with pytest.raises(UserError, match="is a model, not a quantized file"):
        ModelFile.at(model.source)


def test_a_file_of_nearly_the_name_is_suggested(files):
    with pytest.raises(UserError, match=r"does not exist; did you mean .*eight\.gguf\?"):
        ModelFile.at(files[0].with_name("eigth.gguf"))


def test_a_file_and_a_directory_of_one_name_have_figures_of_their_own():
    assert path_beside(Path("a/x.gguf")) != path_beside(Path("a/x"))


def test_command_prints_json_and_takes_the_originals_answers_from_the_work_directory(
    folder, model, text, files, capfd
):
    request = ("eval", files[0], "--against", model.source, "--text", text)
    seen = []
    for _ in range(2):
        assert invoke(*request, "--tokens", TOKENS, "--work-dir", folder / "work", "--json") == 0
        printed = json.loads(capfd.readouterr().out)
        assert printed["files"][0]["name"] == "eight.gguf"
        assert printed["files"][0]["check"]["agree"] is True
        kept = (folder / "work").rglob("*.safetensors")
        seen.append({path: path.stat().st_mtime_ns for path in kept})
    assert seen[0] == seen[1]


def test_a_file_of_another_model_is_refused_before_any_work(files, tmp_path):
    sentence = "model.embed_tokens.weight is .* there and .* in the original"
    with pytest.raises(UserError, match=sentence):
        evaluate(files[:1], against="demo", work_dir=tmp_path / "work")
    twin = tiny_checkpoint(tmp_path, seed=1)
    with pytest.raises(UserError, match="has the same shape there but other values"):
        evaluate(files[:1], against=str(twin), work_dir=tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_what_is_no_model_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="neither a GGUF file nor an MLX directory"):
        ModelFile.at(tmp_path)


def test_a_file_whose_engine_computes_nan_is_refused(model, text, files, tmp_path, monkeypatch):
    monkeypatch.setattr("bitquilt.evaluation.compare.user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr(
        "bitquilt.evaluation.examiner.logits_in",
        lambda engine, *given: (one * float("nan") for one in logits_in(engine, *given)),
    )
    with pytest.raises(UserError, match=r"\.gguf: llama\.cpp computes NaN or infinity at token 0"):
        evaluate(files[:1], against=str(model.source), text=text, tokens=TOKENS)
