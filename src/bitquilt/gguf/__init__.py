"""The GGUF file format, both ways, side by side: what is read is what is written.

Reading takes a GGUF file and gives its metadata, its tensors and a tokenizer's directory. Writing
takes values and a tokenizer's directory and gives the keys and bytes of a header.

:mod:`~bitquilt.gguf.container` has the bytes, :mod:`~bitquilt.gguf.header` what makes a file a
model, :mod:`~bitquilt.gguf.header_only` files without numbers, :mod:`~bitquilt.gguf.metadata`,
:mod:`~bitquilt.gguf.rope` and :mod:`~bitquilt.gguf.sampling` the keys,
:mod:`~bitquilt.gguf.tokenizer` the tokenizer, :mod:`~bitquilt.gguf.kept` what a GGUF source lends
to the file made from it.

Nothing here knows a model family: names of tensors and keys of one family are in
:mod:`bitquilt.models.architectures`, types of single tensors in :mod:`bitquilt.qtypes`, whole files
are written by :mod:`bitquilt.targets`.
"""

SUFFIX = ".gguf"
"""What the names of GGUF files end with; a file that is called otherwise is not opened as one."""
