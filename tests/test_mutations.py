"""Damaged sources end in one sentence, whatever is damaged: never in a traceback.

``MUTATIONS=1000 pytest tests/test_mutations.py`` tries more than the few that the suite has time
for.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from bitquilt.allocation.recipe import read_recipe, resolve_recipe
from bitquilt.bases.importance import load_transformers_model
from bitquilt.bases.lent_weights import lent_weights
from bitquilt.bases.room import require_memory
from bitquilt.calibration.corpus import from_file
from bitquilt.config import QuantizeConfig
from bitquilt.engines import open_engine
from bitquilt.errors import UserError
from bitquilt.forecast import estimate
from bitquilt.forecast.machine import MachineSpeed
from bitquilt.gguf.imatrix import read_imatrix, write_imatrix
from bitquilt.models import open_checkpoint
from bitquilt.models.config_fields import MOST
from bitquilt.models.inspection import inspection_of
from bitquilt.models.licence import terms_of
from bitquilt.models.sources.as_published import open_as_published
from bitquilt.pipeline import Run
from bitquilt.runtime.progress import Progress
from bitquilt.streaming.base import needs_base
from bitquilt.streaming.quantize_gguf import plan_gguf_files, quantize_gguf
from tests.bases.models import unknown_checkpoint
from tests.factories import tiny_checkpoint, tiny_tokenizer
from tests.gguf.test_tokenizer import sentencepiece
from tests.models.sources.test_tokenizer_files import with_tekken
from tests.models.tiny_gguf import write_gguf, write_sentencepiece_gguf
from tests.mutations import damaged
from tests.quick import QUICK
from tests.shapes import shaped_checkpoint
from tests.streaming.models import importance, tensors, write_model
from tests.streaming.test_from_base import stored_in_fp8

CASES = int(os.environ.get("MUTATIONS", "6"))
"""Of each file."""
SMALL = {"layers": 1, "hidden": 64, "heads": 1, "kv_heads": 1}
TEMPLATES = [{"name": "default", "template": "{{ messages[0].content }}"}]
CARD = "---\nlicense: other\nlicense_name: x\nbase_model: a/b\n---\n# Model\n"
GENERATION = {
    **{"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.0},
    **{"bos_token_id": 506, "eos_token_id": [511, 507], "pad_token_id": 507},
}
RECIPE = {
    "format": 2,
    "default": "Q4_K",
    "rules": [{"match": "attn_v|ffn_down", "type": {"gguf": "Q6_K", "mlx": "6bit-g64"}}],
    "pin": {"token_embd": "Q8_0"},
}
DOCUMENTS = [
    {"domain": "a", "source": "b", "text": "words and words"},
    {"messages": [{"role": "user", "content": "a question"}]},
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of everything that is read."""
    place = tmp_path_factory.mktemp("sources")
    bytewise = tiny_checkpoint(place, "llama", **SMALL)
    (bytewise / "README.md").write_text(CARD)
    (bytewise / "generation_config.json").write_text(json.dumps(GENERATION))
    (bytewise / "additional_chat_templates").mkdir()
    (bytewise / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    sharded = tiny_checkpoint(place, "gemma3_text", **SMALL)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=sentencepiece(), eos_token="<|eot_id|>")
    wrapped.chat_template = None
    (sharded / "chat_template.jinja").unlink()
    wrapped.save_pretrained(sharded)
    (sharded / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATES}))
    _shard(sharded)
    _wrap(sharded)
    tiny_checkpoint(place, "llama4_text", **SMALL)
    stored_in_fp8(tiny_checkpoint(place, "qwen3", **SMALL))
    with_tekken(tiny_checkpoint(place, "mistral", **SMALL))
    unknown_checkpoint(place, "granite")
    unknown_checkpoint(place, "qwen3_moe")
    write_gguf(bytewise, place / "bytewise.gguf")
    write_sentencepiece_gguf(place / "pieces.gguf", "gemma3")
    weights = tensors(blocks=1)
    write_model(place / "any.gguf", weights)
    write_imatrix(place / "matrix.gguf", importance(weights))
    write_imatrix(place / "matrix.dat", importance(weights), legacy=True)
    (place / "recipe.json").write_text(json.dumps(RECIPE))
    (place / "text.jsonl").write_text("\n".join(map(json.dumps, DOCUMENTS)))
    (place / "text.txt").write_text("words\n\n\nother words")
    return place


def _shard(directory: Path) -> None:
    """Put the weights into two files with an index."""
    weights = load_file(directory / "model.safetensors")
    names = list(weights)
    parts = {"model-1.safetensors": names[:5], "model-2.safetensors": names[5:]}
    for file, inside in parts.items():
        save_file({name: weights[name] for name in inside}, directory / file)
    places = {name: file for file, inside in parts.items() for name in inside}
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "model.safetensors").unlink()


def _wrap(directory: Path) -> None:
    """Make it the language model of one that sees."""
    path = directory / "config.json"
    config = {"model_type": "gemma3", "text_config": json.loads(path.read_text())}
    path.write_text(json.dumps(config | {"vision_config": {"model_type": "siglip_vision_model"}}))


def use_model(path: Path) -> None:
    """Do everything with a model that comes before long work, and read its weights."""
    checkpoint = open_checkpoint(path)
    inspection_of(checkpoint)
    terms_of(checkpoint)
    config = QuantizeConfig(output=str(path.parent / "out"), to="both", recipe="Q8_0", **QUICK)
    Run(path, config, Progress())
    for name in checkpoint.shapes:
        checkpoint.load(name)


def use_directory(path: Path) -> None:
    """Also open it for talking."""
    use_model(path)
    open_engine(path)


def use_unknown(path: Path) -> None:
    """Load a model that bitquilt has no tables of, and run it."""
    if not needs_base(path):
        return
    require_memory(path)
    open_as_published(path, path.name)
    model = load_transformers_model(path)
    lent_weights(model).tried(lambda: model(torch.arange(8)[None], use_cache=False))


def use_matrix(path: Path) -> None:
    """Plan a file by an importance matrix."""
    read_imatrix(path)
    model = path.parent / "any.gguf"
    output = str(path.parent / "out")
    plan_gguf_files(model, imatrix=path, recipe="Q4_K_M", output=output, progress=Progress())


def use_any_gguf(path: Path) -> None:
    """Plan a file of a model of no known architecture."""
    output = str(path.parent / "out")
    matrix = path.parent / "matrix.gguf"
    quantize_gguf(path, imatrix=matrix, recipe="Q8_0", output=output, progress=Progress())


def use_recipe(path: Path) -> None:
    """Give every matrix a type."""
    for target in ("gguf", "mlx"):
        resolve_recipe(read_recipe(path), shaped_checkpoint(), target)


def use_text(path: Path) -> None:
    """Make tokens of it."""
    for document in from_file(path):
        tiny_tokenizer().encode("\n".join(document.passages))


FILES: dict[str, Callable[[Path], object]] = {
    "tiny-llama/config.json": use_directory,
    "tiny-llama/tokenizer.json": use_directory,
    "tiny-llama/tokenizer_config.json": use_directory,
    "tiny-llama/generation_config.json": use_directory,
    "tiny-llama/chat_template.jinja": use_directory,
    "tiny-llama/additional_chat_templates/tool_use.jinja": use_directory,
    "tiny-llama/model.safetensors": use_directory,
    "tiny-llama/README.md": use_directory,
    "tiny-gemma3_text/config.json": use_directory,
    "tiny-gemma3_text/tokenizer.json": use_directory,
    "tiny-gemma3_text/chat_template.json": use_directory,
    "tiny-gemma3_text/model.safetensors.index.json": use_directory,
    "tiny-gemma3_text/model-2.safetensors": use_directory,
    "tiny-llama4_text/config.json": use_directory,
    "tiny-qwen3/config.json": use_directory,
    "tiny-qwen3/model.safetensors": use_directory,
    "tiny-mistral/tekken.json": use_directory,
    "granite/config.json": use_unknown,
    "granite/model.safetensors": use_unknown,
    "qwen3_moe/config.json": use_unknown,
    "bytewise.gguf": use_model,
    "pieces.gguf": use_model,
    "any.gguf": use_any_gguf,
    "matrix.gguf": use_matrix,
    "matrix.dat": use_matrix,
    "recipe.json": use_recipe,
    "text.jsonl": use_text,
    "text.txt": use_text,
}
"""Everything that is read → what is done with it, given the model's directory or the file."""


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is measured on this machine is no part of it."""
    speed = MachineSpeed(block=1.0, fast_block=1.0, head=1.0, rounding=1.0, threads=1, on_gpu=False)
    monkeypatch.setattr(estimate, "machine_speed", lambda _: speed)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A gigabyte more than is taken already."""
    resource = pytest.importorskip("resource")
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("only Linux says what a process takes")
    taken = int(statm.read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + (1 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


HUGE = 2**40
IN_GGUF = {
    "pairs": struct.pack("<IQQ", 3, 0, HUGE),
    "tensors": struct.pack("<IQQ", 3, HUGE, 0),
    "the length of a key": struct.pack("<IQQQ", 3, 0, 1, HUGE),
    "a list of numbers": struct.pack("<IQQQcIIQ", 3, 0, 1, 1, b"k", 9, 5, HUGE),
    "a list of texts": struct.pack("<IQQQcIIQ", 3, 0, 1, 1, b"k", 9, 8, HUGE),
    "dimensions": struct.pack("<IQQQcI", 3, 1, 0, 1, b"k", 2**32 - 1),
    "a dimension": struct.pack("<IQQQcIQIQ", 3, 1, 0, 1, b"k", 1, HUGE, 0, 0),
}


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("what", IN_GGUF)
def test_a_header_that_asks_for_a_terabyte_is_refused_before_it_is_asked_for(
    what: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + IN_GGUF[what] + bytes(64))
    with pytest.raises(UserError, match=r"model\.gguf cannot be read"):
        open_checkpoint(path)


@pytest.mark.usefixtures("little_memory")
def test_an_importance_matrix_of_more_numbers_than_the_file_has_bytes_is_refused(
    tmp_path: Path,
) -> None:
    path = tmp_path / "matrix.dat"
    path.write_bytes(struct.pack("<iiciii", 2**31 - 1, 1, b"k", 1, 1, 2**31 - 1))
    with pytest.raises(UserError, match="ends early"):
        read_imatrix(path)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("field", sorted(MOST))
def test_a_config_of_a_model_that_nobody_has_is_refused(
    field: str, sources: Path, tmp_path: Path
) -> None:
    source = sources / ("tiny-llama4_text" if field.endswith("_mlp") else "tiny-llama")
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {field: 2**41}))
    with pytest.raises(UserError, match=f"^{field} is 2199023255552 in config.json, and should"):
        open_checkpoint(tmp_path / "config.json")


@pytest.mark.usefixtures("little_memory")
def test_weights_whose_header_is_longer_than_the_file_are_refused(
    sources: Path, tmp_path: Path
) -> None:
    shutil.copytree(sources / "tiny-llama", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(struct.pack("<Q", HUGE) + b"{}")
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        open_checkpoint(tmp_path / "model")


@pytest.mark.parametrize("name", FILES)
def test_whatever_is_damaged_ends_in_a_sentence(name: str, sources: Path, tmp_path: Path) -> None:
    for case in range(CASES):
        place = tmp_path / str(case)
        try_case(name, case, sources, place)
        shutil.rmtree(place)


def try_case(name: str, case: int, sources: Path, place: Path) -> str | None:
    """Damage a copy and use it; return the sentence, None where nobody minds.

    Raises:
        AssertionError: it ended in something else.
    """
    top = Path(name).parts[0]
    place.mkdir()
    for beside in {top, "any.gguf", "matrix.gguf"}:
        copy = shutil.copytree if (sources / beside).is_dir() else shutil.copyfile
        copy(sources / beside, place / beside)
    what = damaged(place / name, case)
    try:
        FILES[name](place / top)
    except UserError as error:
        sentence = str(error)
        assert "\n" not in sentence.strip(), f"{name} {case}: {what}: {sentence}"
        return sentence
    except BaseException as error:
        raise AssertionError(f"{name}, case {case}, where {what}") from error
    return None
