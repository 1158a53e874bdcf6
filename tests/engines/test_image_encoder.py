"""What llama.cpp sees by us is what transformers' own vision tower makes of the same image."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from bitquilt.bases.vision import write_vision
from bitquilt.engines import Engine, GenerationRequest, Sampling
from bitquilt.engines.image_encoder import ImageEncoder
from bitquilt.engines.llamacpp import open_llamacpp, vision_beside
from bitquilt.engines.llamacpp_backend import LlamaCppBackend
from bitquilt.errors import UserError
from bitquilt.models import open_checkpoint
from bitquilt.talk.prompt import compose, image_mark
from bitquilt.targets import GGUF
from tests.bases.models import needs_converter, unknown_checkpoint
from tests.magistral import IMAGES, RESERVED, SPECIALS, seeing_files
from tests.png import colours, png
from tests.quick import invoke
from tests.targets.conftest import Model

pytestmark = needs_converter
PIXELS = colours(112, 84)
IMAGE = png(PIXELS)
OTHER = png(PIXELS[::-1].copy())
BREAK, END = (SPECIALS.index(f"[IMG_{what}]") for what in ("BREAK", "END"))
QUESTION = [ord(letter) + RESERVED for letter in "What is it?"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's directory, its file and that of its vision tower."""
    place = tmp_path_factory.mktemp("vision")
    seeing_files(place)
    return place


@pytest.fixture(scope="module")
def engine(files: Path) -> Iterator[Engine]:
    with open_llamacpp(files / "Magistral-Tiny-F32.gguf", exact=True) as engine:
        yield engine


def said(engine: Engine, tokens: list[int]) -> list[tuple[int, float]]:
    """Four tokens after a prompt, with their log-probabilities."""
    request = GenerationRequest(tokens=tokens, sampling=Sampling(), max_tokens=4, scores=0)
    with engine.stream([request]) as stream:
        return [(piece.token, piece.score.logprob) for _, piece in stream if piece.score]


def in_transformers(files: Path, pixels: np.ndarray, before: list[int], after: list[int]) -> list:
    """What transformers' model says after an image between tokens, greedily."""
    directory = files / "Magistral-Tiny"
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
    mean, std = (np.array(IMAGES[f"image_{what}"]) for what in ("mean", "std"))
    scaled = ((pixels / 255 - mean) / std).transpose(2, 0, 1)[None]
    # 8 × 6 patches of 14, of which two by two are one embedding; a token after every row
    rows = [[10] * 4 + [BREAK]] * 2 + [[10] * 4 + [END]]
    tokens = before + [token for row in rows for token in row] + after
    found = []
    with torch.no_grad():
        for _ in range(4):
            logits = model(
                input_ids=torch.tensor([tokens]),
                pixel_values=torch.tensor(scaled, dtype=torch.float32),
                image_sizes=torch.tensor([pixels.shape[:2]]),
            ).logits[0, -1]
            best = int(logits.argmax())
            found.append((best, float(logits.log_softmax(-1)[best])))
            tokens.append(best)
    return found


def test_the_answer_about_an_image_is_transformers(engine: Engine, files: Path) -> None:
    numbers = engine.see(IMAGE)
    assert engine.info.sees
    assert numbers[-1] == END
    assert len(numbers) == 4 * 3 + 2 + 1
    wanted = in_transformers(files, PIXELS, [1], QUESTION)
    found = said(engine, [1, *numbers, *QUESTION])
    assert [token for token, _ in found] == [token for token, _ in wanted]
    assert [p for _, p in found] == pytest.approx([p for _, p in wanted], abs=0.05)


def test_another_image_gives_another_answer_and_the_first_is_still_known(engine: Engine) -> None:
    first, other = engine.see(IMAGE), engine.see(OTHER)
    assert not set(first[:-1]) & set(other[:-1])
    before = said(engine, [1, *first, *QUESTION])
    assert said(engine, [1, *other, *QUESTION]) != before
    assert said(engine, [1, *first, *other, *QUESTION]) != before
    assert engine.see(IMAGE) == first
    again = said(engine, [1, *first, *QUESTION])
    assert [token for token, _ in again] == [token for token, _ in before]


def test_two_rows_see_different_images_at_once(engine: Engine) -> None:
    prompts = [[1, *engine.see(image), *QUESTION] for image in (IMAGE, OTHER)]
    alone = [said(engine, prompt)[0][0] for prompt in prompts]
    requests = [
        GenerationRequest(tokens=prompt, sampling=Sampling(repetition_penalty=1.1), max_tokens=1)
        for prompt in prompts
    ]
    with engine.stream(requests) as stream:
        together = {row: piece.token for row, piece in stream}
    assert len(together) == len(alone) == 2


def test_a_conversation_has_the_image_where_its_mark_is(engine: Engine) -> None:
    content = f"{image_mark(IMAGE)}\nWhat is it?"
    prompt = compose(engine, [{"role": "user", "content": content}], images=[IMAGE])
    numbers = engine.see(IMAGE)
    at = prompt.tokens.index(numbers[0])
    assert prompt.tokens[at : at + len(numbers)] == numbers
    assert prompt.tokens[at - 1] == SPECIALS.index("[INST]")
    assert "What is it?" in engine.decode(prompt.tokens)


@pytest.mark.parametrize("image", [b"\x89PNG nothing", b"", b"text"])
def test_what_is_no_image_is_one_sentence_and_the_engine_lives(
    engine: Engine, image: bytes
) -> None:
    with pytest.raises(UserError, match="an image cannot be read; give a file of PNG"):
        engine.see(image)
    assert engine.see(IMAGE)


def test_a_model_without_vision_refuses(files: Path, tmp_path: Path) -> None:
    alone = tmp_path / "m.gguf"
    alone.symlink_to(files / "Magistral-Tiny-F32.gguf")
    with open_llamacpp(alone) as engine:
        assert not engine.info.sees
        with pytest.raises(UserError, match=r"m.gguf reads text only: .* mmproj-NAME.gguf"):
            compose(engine, [{"role": "user", "content": "?"}], images=[IMAGE])
        with pytest.raises(UserError, match="no vision tower beside it"):
            engine.see(IMAGE)


def test_another_models_mmproj_is_refused(files: Path, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").symlink_to(files / "Magistral-Tiny-F32.gguf")
    (tmp_path / "mmproj-m.gguf").write_bytes(b"GGUF" + bytes(60))
    refused = pytest.raises(UserError, match=r"llama\.cpp cannot see with .*mmproj-m\.gguf")
    with open_llamacpp(tmp_path / "m.gguf") as engine, refused:
        engine.see(IMAGE)


def test_the_mmproj_beside_a_model_is_found_by_name(tmp_path: Path) -> None:
    for name in ("a-4bit.gguf", "a-b-4bit.gguf", "c.gguf", "mmproj-a.gguf", "mmproj-a-b.gguf"):
        (tmp_path / name).touch()
    assert vision_beside(tmp_path / "a-4bit.gguf") == tmp_path / "mmproj-a.gguf"
    assert vision_beside(tmp_path / "a-b-4bit.gguf") == tmp_path / "mmproj-a-b.gguf"
    assert vision_beside(tmp_path / "c.gguf") is None
    assert vision_beside(tmp_path / "mmproj-a.gguf") is None
    (tmp_path / "mmproj-a.gguf").unlink()
    assert vision_beside(tmp_path / "c.gguf") == tmp_path / "mmproj-a-b.gguf"


def test_run_shows_the_image_before_the_question(
    files: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, image = files / "Magistral-Tiny-F32.gguf", tmp_path / "i.png"
    image.write_bytes(IMAGE)
    asked = ["run", model, "What is it?", "--max-tokens", "4", "--json"]
    assert invoke(*asked, "--image", image) == 0
    seeing = json.loads(capfd.readouterr().out)
    assert invoke(*asked) == 0
    blind = json.loads(capfd.readouterr().out)
    # a new line and the image more than the question alone
    assert seeing["prompt_tokens"] == blind["prompt_tokens"] + 4 * 3 + 2 + 1 + 1


@pytest.mark.parametrize(
    ("name", "words"),
    [("missing.png", "missing.png cannot be read"), ("text.txt", "text.txt is not an image; give")],
)
def test_run_refuses_what_is_no_image(
    files: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    (tmp_path / "text.txt").write_text("words")
    asked = ["run", files / "Magistral-Tiny-F32.gguf", "What?", "--image", tmp_path / name]
    assert invoke(*asked) == 2
    assert words in capfd.readouterr().err


def test_an_image_that_is_read_at_once_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    """Gemma's tower makes the same embeddings, and every part of an image sees every other.

    llama.cpp's embeddings go to both language models.
    """
    directory = unknown_checkpoint(tmp_path, "gemma3")
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
    path = directory / "model.safetensors"
    own, published = "vision_tower.", "vision_tower.vision_model."
    weights = {name.replace(own, published): t for name, t in load_file(path).items()}
    save_file(weights, path, {"format": "pt"})
    images = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "image_seq_length": 4}
    (directory / "preprocessor_config.json").write_text(json.dumps(images))
    checkpoint, file = open_checkpoint(directory), tmp_path / "g.gguf"
    made = Model(directory, checkpoint)
    GGUF.write(checkpoint, made.on("F32"), made.packed, file, "{}")
    write_vision(checkpoint, tmp_path / "mmproj-g.gguf")
    backend = LlamaCppBackend(str(file), True, 1, vision=str(tmp_path / "mmproj-g.gguf"))
    numbers = [1, *backend.see(png(colours(28, 28))), 5, 6, 7]
    shown = torch.tensor([number >= backend.info.vocabulary for number in numbers])
    assert int(shown.sum()) == 4
    logits, _ = backend.prefill([numbers], 1)
    vision = ImageEncoder(
        backend._api, backend._model, str(tmp_path / "mmproj-g.gguf"), backend.info.vocabulary, 1
    )
    vision.see(png(colours(28, 28)))
    seen = vision.embeddings([number for number in numbers if number >= backend.info.vocabulary])
    scaled = torch.tensor((colours(28, 28) / 127.5 - 1).transpose(2, 0, 1)[None]).float()
    with torch.no_grad():
        own_seen = model.model.get_image_features(scaled).pooler_output[0]
    assert torch.cosine_similarity(torch.tensor(seen), own_seen).min() > 0.9999
    tokens = torch.tensor(numbers).masked_fill(shown, 0)[None]
    with torch.no_grad():
        inputs = model.get_input_embeddings()(tokens).clone()
        inputs[0, shown] = torch.tensor(seen)
        wanted = model(inputs_embeds=inputs, token_type_ids=shown.long()[None]).logits[0, -1]
        blind = model(inputs_embeds=inputs).logits[0, -1]
    assert np.abs(logits[0] - wanted.numpy()).max() < 0.01
    assert np.abs(logits[0] - blind.numpy()).max() > 0.05
