"""Rounding: every matrix of a model onto quantization types, with as little damage as possible.

In: a checkpoint and its calibration statistics. Out: packed matrices in a layer bank, each with its
predicted cost; for a decided mix, matrices that make up for each other (sequential_pass) and tuned
scales (tuning).

    layer_bank.py          the store: every matrix on every candidate type
    given_cells.py         matrices of other files, which it takes where they are better
    costs.py               what rounding takes, by type
    rounders.py            fill the bank: every candidate, or estimates and then what is chosen
    text_pass.py           a pass over the text, with a step for each block
    text_readers.py, reader_child.py    the GPUs that take it together
    round_layers.py        round, estimate, polish or finish what is missing
    input_work.py          what reads some inputs, under one factorization
    row_sample.py          a few rows that stand for a matrix
    round_matrices.py      the matrices of some inputs, on all their types, in two steps
    row_batches.py         rows of many matrices computed as one batch
    nearest.py, fits/      scales by importance, nearest codes: one fit for each family of types
    hessian.py             Hessians ordered, damped and factorized
    gptq.py                error feedback between columns
    output_feedback.py     error feedback between rows
    coordinate_descent.py, scale_refit.py    polishing
    group_quantizer.py, codebooks.py, tables.py    nearest codes under a metric
    kernels.py, kernels.cu the same on a GPU
    sequential_pass.py, staged_block.py, gptaq.py    correction for the blocks before
    tuning/                scales and norms learned by distillation
"""

METHODS = ("nearest", "gptq", "full")
"""Nearest rounding; GPTQ's error feedback where it is better; and this polished by coordinate
descent and a refit of the scales."""

ROUNDING_VERSION = 9
"""Raised when matrices come out with other bytes or are stored otherwise: a work directory of
another version is refused."""
