"""Any GGUF file, quantized with an importance matrix, tensor by tensor, without a forward pass.

In: a GGUF file of whatever architecture, whole or in parts, and what llama-imatrix says of it. Out:
the file with its matrices on other types, of an exact size. Only the last four modules, which run
a model, load torch.

    source.py         the file: which tensors are matrices, and their rows
    importance.py     what the inputs of each matrix count for
    costs.py          what rounding to each type does to a sample of its rows
    residual.py       how much of that reaches the output
    mix.py            which type each matrix gets
    ggml.py           llama.cpp's own rounding
    writing.py        the new file
    quantize_gguf.py  all of it, for a command
    make_imatrix.py   an importance matrix
    trial.py          the base of a model in its engine, before anything long
    base.py           the base of a model that bitquilt has no tables of, and its text
    from_base.py      that model, as a stream
"""
