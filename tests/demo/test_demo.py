"""The embedded model answers, and nothing it is measured on leaked into calibration."""

import pytest
import torch
import transformers

from bitquilt import demo
from bitquilt.calibration import corpus


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(demo.path())


@pytest.fixture(scope="module")
def model():
    loaded = transformers.Llama4ForCausalLM.from_pretrained(demo.path(), dtype=torch.float32)
    return loaded.eval()


def prompt(tokenizer, question):
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )


def test_architecture_is_the_familys(model):
    config = model.config
    assert config.model_type == "llama4_text"
    assert len(config.no_rope_layers) > config.num_hidden_layers
    assert config.intermediate_size != config.intermediate_size_mlp
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(side % 128 == 0 for w in model.parameters() for side in w.shape)


def test_package_data_stays_small():
    files = [file for file in demo.path().iterdir() if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 30e6


def test_logits_are_finite_and_text_is_predicted(model, tokenizer):
    text = (
        "It is a truth universally acknowledged, that a single man in possession of a good fortune"
    )
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        out = model(ids, labels=ids)
    assert torch.isfinite(out.logits).all()
    assert out.loss < 5.5  # guessing costs log 8192 = 9.0


SOLUTIONS = {
    "What is 347 + 585?": r"""Add 347 + 585 column by column:
ones: 7 + 5 = 12, write 2, carry 1
tens: 4 + 8 + 1 = 13, write 3, carry 1
hundreds: 3 + 5 + 1 = 9, write 9
347 + 585 = 932
\boxed{932}""",
    "Solve for x: 3x + 7 = 25": r"""Subtract 7 from both sides:
3x = 25 - 7 = 18
Divide both sides by 3:
x = 18 / 3 = 6
\boxed{6}""",
}


@pytest.mark.parametrize("question", SOLUTIONS)
def test_known_questions_are_answered(model, tokenizer, question):
    asked = tokenizer(prompt(tokenizer, question), add_special_tokens=False).input_ids
    answer = tokenizer(SOLUTIONS[question] + "<|eot_id|>", add_special_tokens=False).input_ids
    with torch.no_grad():
        logits = model(torch.tensor([asked + answer])).logits[0]
    # greedy decoding writes the answer exactly if every token of it is the likeliest in its place
    assert logits[len(asked) - 1 : -1].argmax(-1).tolist() == answer


def test_template_puts_in_the_reasoning_prompt_unless_told_otherwise(tokenizer):
    rendered = prompt(tokenizer, "Hi")
    assert rendered.startswith("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n")
    assert r"put your final answer within \boxed{}." in rendered
    assert rendered.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    own = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert "boxed" not in tokenizer.apply_chat_template(own, tokenize=False)


@pytest.mark.parametrize(
    "text", ["naïve café — 日本語 🎉", "x = [1, 2]\n\n\tif y:\r\n", "1234567.89"]
)
def test_tokenizer_round_trips(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_digits_are_single_tokens(tokenizer):
    assert tokenizer.tokenize("90125") == list("90125")


def test_problems_are_in_no_bundled_text():
    problems = demo.problems()
    assert len(problems) == 200
    assert all(p["question"] and p["answer"] and p["kind"] for p in problems)
    questions = {p["question"] for p in problems}
    assert len(questions) == 200
    for split in ("calibration", "held-out"):
        asked = {d.passages[0] for d in corpus.bundled(split) if d.messages}
        assert questions.isdisjoint(asked)
