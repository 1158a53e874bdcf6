"""Made tekken_answers.json, with mistral-common 1.13.1: PYTHONPATH=. python make_tekken_answers.py.

A small tekken.json, trained here on the texts, and the tokens that mistral-common's own Tekkenizer
makes of them.
"""

import json
from pathlib import Path

from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from bitquilt.targets.same_tokens import TEXTS, UNCOMPOSED
from tests.gguf.test_tokenizer import TEXTS as OTHERS
from tests.gguf.test_tokenizer import on_regex
from tests.magistral import SPLITTINGS, tekken_of

texts = [*TEXTS.values(), *OTHERS, UNCOMPOSED, "a" * 50, " " * 40, ""]
(pattern,) = SPLITTINGS["tekken"].patterns
trained = Tokenizer(models.BPE())
trained.pre_tokenizer = on_regex(pattern)
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
trained.train_from_iterator(texts, trainer)
back = {letter: byte for byte, letter in bytes_to_unicode().items()}
pieces = [bytes([byte]) for byte in range(256)]
for piece, _ in sorted(trained.get_vocab().items(), key=lambda item: item[1]):
    if len(raw := bytes(back[letter] for letter in piece)) > 1:
        pieces.append(raw)
tekken = tekken_of(pieces)
Path("tekken.json").write_text(json.dumps(tekken), encoding="utf-8")
own = Tekkenizer.from_file("tekken.json")
answers = [[text, own.encode(text, bos=False, eos=False)] for text in texts]
Path("tekken.json").unlink()
content = json.dumps({"tekken": tekken, "answers": answers}, ensure_ascii=False)
Path("tekken_answers.json").write_text(content + "\n", encoding="utf-8")
