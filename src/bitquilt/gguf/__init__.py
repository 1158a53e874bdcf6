"""The GGUF container, both ways: header, metadata, tensor names, tokenizer.

In: a GGUF file, or a canonical config with a Hugging Face tokenizer. Out: the other of the two.
Formats of single tensors are in :mod:`bitquilt.qtypes`; whole files are written by
:mod:`bitquilt.targets`.
"""
