"""Vocabulary trimming: a model with only the tokens that somebody's text needs.

In: a checkpoint, text to keep or languages, and a number of tokens. Out: a Hugging Face checkpoint
whose tokenizer, embedding, head and configs are cut, which everything else here takes.

    config.py        what can be asked for
    vocabulary.py    which tokens are kept: the closure under BPE merges, as pure functions
    expected.py      which tokens the model expects of more text like it
    ranking.py       which tokens matter: counted and expected
    bpe.py           tokenizer.json, read and cut
    checkpoint.py    the cut checkpoint on disk
    trim.py          all of it in order
    trimmed.py       the trimmed model that `quantize --trim` goes on with
"""
