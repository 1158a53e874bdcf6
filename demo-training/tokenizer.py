"""Train the demo model's tokenizer: byte-level BPE, 8192 entries, laid out as Llama 3's.

The pre-tokenizer is exactly Llama 3's, so llama.cpp's `llama-bpe` applies to it. Digits never
merge: training cuts every digit off, and without merges between them Llama 3's groups of three
digits fall into single ones, which is what makes column arithmetic learnable.

    python tokenizer.py CORPUS.jsonl MODEL_DIRECTORY
"""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from conversations import SYSTEM, conversation
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, trainers
from tokenizers import pre_tokenizers as pre
from tokenizers import processors as post

VOCABULARY = 8192
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIALS = [  # in Llama 3's order, at the end of the vocabulary
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>", "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(3, 8)),
]  # fmt: skip
BOS, EOS, PAD, EOT = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|eot_id|>",
)
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- if messages[0]["role"] == "system" -%}
    {%- set system = messages[0]["content"] | trim -%}
    {%- set messages = messages[1:] -%}
{%- else -%}
    {%- set system = "SYSTEM" -%}
{%- endif -%}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" + system + "<|eot_id|>" -}}
{%- for message in messages -%}
    {{- "<|start_header_id|>" + message["role"] + "<|end_header_id|>\\n\\n" -}}
    {{- message["content"] | trim + "<|eot_id|>" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" -}}
{%- endif -%}
""".replace("SYSTEM", SYSTEM.replace("\\", "\\\\"))


def split_by(pattern: str) -> pre.PreTokenizer:
    return pre.Sequence(
        [
            pre.Split(Regex(pattern), "isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def training_text(corpus: Path) -> Iterator[str]:
    """A quarter of the training documents, and conversations for the words of the problems."""
    rng = random.Random(0)
    with open(corpus) as lines:
        for line in lines:
            document = json.loads(line)
            if document["split"] == "train" and rng.random() < 0.25:
                yield document["text"][:100_000]
    for _ in range(20_000):
        yield "\n\n".join(m["content"] for m in conversation(rng, frozenset()))


def train(corpus: Path) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = split_by(LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}"))
    tokenizer.train_from_iterator(
        training_text(corpus),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY - len(SPECIALS),
            initial_alphabet=pre.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.pre_tokenizer = split_by(LLAMA_3)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIALS])
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = post.Sequence(
        [
            post.ByteLevel(trim_offsets=False),
            post.TemplateProcessing(
                single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, bos)]
            ),
        ]
    )
    assert tokenizer.get_vocab_size() == VOCABULARY
    return tokenizer


def save(tokenizer: Tokenizer, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token, "lstrip": False, "normalized": False, "rstrip": False,
            "single_word": False, "special": True,
        }
        for token in SPECIALS
    }  # fmt: skip
    roles = {"bos_token": BOS, "eos_token": EOT, "pad_token": PAD}
    config = {
        "added_tokens_decoder": added, **roles, "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"], "model_max_length": 2048,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }  # fmt: skip
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", roles)):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)


if __name__ == "__main__":
    save(train(Path(sys.argv[1])), Path(sys.argv[2]))
