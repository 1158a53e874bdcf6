"""The memory that a run takes at its peak: the largest of its stages.

One pure function adds up what each stage holds at once, from the constants of the code that holds
it. It is right to about a third (docs/decisions/forecast.md): the C library keeps freed blocks.

Letters: D model width, I width of the MLP, V vocabulary.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter

import torch

from bitquilt.allocation.evaluator import AT_ONCE, DECODED_BYTES
from bitquilt.allocation.race_search import RaceSchedule
from bitquilt.calibration.block_moments import input_of
from bitquilt.calibration.collect import widths_of_outputs
from bitquilt.calibration.shrinkage import FOLDS
from bitquilt.forecast.work import RunWork
from bitquilt.models.blockwise import BATCH_TOKENS, LOGITS, logit_tokens
from bitquilt.models.checkpoint import EMBEDDING, HEAD
from bitquilt.models.names import layer_of
from bitquilt.rounding.input_work import (
    CPU_MEMORY,
    HESSIAN_BYTES,
    TABLE_WEIGHTS,
    WEIGHT_BYTES,
)
from bitquilt.rounding.output_feedback import OUTPUT_BYTES
from bitquilt.rounding.row_batches import DEFAULT_SIZES
from bitquilt.runtime.device import compute_device

PROGRAM = 450_000_000
"""Bytes of Python, torch, transformers and the tokenizer."""
GPU_PROGRAM, SOURCE_PAGES = 4_200_000_000, 0.3
"""Bytes of that with CUDA and what goes back and forth, and the part of a source that stays in
memory, where a GPU computes: 4.7 GB were taken for one of 3.8 GB, 9.0 for one of 16.1."""
FLOAT = 4
CELL_BYTES, BUSY_BYTES, FIT_BYTES = 16, 24, 48
"""What a weight takes that is rounded with its input's others, what it takes more while a thread is
busy with it, and what it takes while the scales of a table are fitted."""
LOGIT_COPIES, LOGIT_GRADIENTS = 6, 10
"""Tensors as large as the logits where they are compared, and where gradients go back."""
TABLE_COPIES = 4
"""Embeddings that attributions hold: exact, rounded, their difference, the gradient."""


def peak_bytes(work: RunWork) -> int:
    """Return about how many bytes of main memory a run holds at once."""
    if compute_device().type != "cpu":  # the stages are in the GPU's own memory
        return int(GPU_PROGRAM + SOURCE_PAGES * sum(work.checkpoint.source_types.values()))
    parts = stage_bytes(work)
    return PROGRAM + max(parts.values())


def stage_bytes(work: RunWork) -> dict[str, int]:
    """Return kind of a stage → bytes beside :data:`PROGRAM` that it holds at once."""
    checkpoint, budget, config = work.checkpoint, work.budget, work.checkpoint.config
    width, vocabulary = int(config["hidden_size"]), int(config["vocab_size"])
    table = FLOAT * width * vocabulary
    logits = FLOAT * min(LOGITS, logit_tokens(vocabulary) * vocabulary)
    token = FLOAT * width
    block = FLOAT * max(
        sum(work.weights(module) for module in checkpoint.matrices if layer_of(module) == layer)
        for layer in range(checkpoint.layers)
    )
    activations = BATCH_TOKENS * FLOAT * (4 * int(config["intermediate_size"]) + 10 * width)
    hessians = FLOAT * max(
        sum(
            checkpoint.matrices[module][1] ** 2
            for module in checkpoint.matrices
            if layer_of(module) == layer and input_of(module) == module
        )
        for layer in range(checkpoint.layers)
    )
    outputs = FLOAT * max(
        sum(width**2 for width in widths_of_outputs(checkpoint, layer))
        for layer in range(checkpoint.layers)
    )
    window = budget.window * token
    kept = budget.calibration * window * (checkpoint.layers + 3)
    found = {
        "calibration": max(
            kept + block + 2 * activations + 2 * FOLDS * (hessians + outputs),
            kept + table + LOGIT_COPIES * logits,
        ),
        "rounding": _rounding(work, table) + (kept if work.two_passes else 0),
    }
    held_out = work.closing * window
    if work.selects:
        texts = max(budget.search if work.search.method != "knapsack" else 0, budget.selection)
        found["search"] = (
            table
            + _decoded(work)
            + texts * window
            + _states(work, window)
            + activations
            + LOGIT_COPIES * logits
        )
    if any(work.interactions(target) for target in work.targets):
        reading = work.budget.interactions * window + 2 * window * checkpoint.layers
        found["interactions"] = (
            TABLE_COPIES * table + table + reading + 3 * block + LOGIT_GRADIENTS * logits
        )
    if work.quantizing is not None:
        found["checking"] = 3 * table + 2 * held_out + activations + block + LOGIT_COPIES * logits
        if work.quantizing.tune:
            kept = budget.tuning * window
            found["tuning"] = TABLE_COPIES * table + table + kept + LOGIT_GRADIENTS * logits
    return found


def _rounding(work: RunWork, table: int) -> int:
    """Bytes of rounding: of the table, or of the inputs that go together."""
    cells = {"table": 0, "blocks": 0}
    for target in work.targets:
        candidates = work.candidates[target.name]
        inside = sum(
            work.weights(m) * len(names)
            for m, names in candidates.items()
            if m not in (EMBEDDING, HEAD)
        )
        cells["blocks"] = max(cells["blocks"], min(inside, CPU_MEMORY.cell_weights))
        tables = [work.weights(m) for m in candidates if m in (EMBEDDING, HEAD)]
        cells["table"] = max(cells["table"], *tables)
    packed = 2 * cells["table"]  # at most two bytes a weight, as written and as put together
    of_table = table + packed + FIT_BYTES * min(cells["table"], TABLE_WEIGHTS)
    shapes = work.checkpoint.matrices.items()
    by_input = Counter[str]()
    for module, (rows, columns) in shapes:
        if module not in (EMBEDDING, HEAD):
            by_input[input_of(module)] += WEIGHT_BYTES * rows * columns + OUTPUT_BYTES * rows**2
            by_input[module] += HESSIAN_BYTES * columns**2 if input_of(module) == module else 0
    busy = min(cells["blocks"], torch.get_num_threads() * DEFAULT_SIZES.cpu)
    largest = sum(heapq.nlargest(CPU_MEMORY.least_inputs, by_input.values()))
    inputs = min(by_input.total(), max(CPU_MEMORY.input_bytes, largest))
    return max(of_table, inputs + CELL_BYTES * cells["blocks"] + BUSY_BYTES * busy)


def _decoded(work: RunWork) -> int:
    """Bytes of decoded matrices that the evaluator keeps.

    A search measures every candidate. Without one, only the mix of the knapsack and the largest
    preset are read: about the planned mix's types, where these differ two of a matrix.
    """
    needed = 0
    for target in work.targets:
        types = work.candidates[target.name]
        if work.search.method == "knapsack":
            types = {module: [] for module in types}
            for module, name in work.made(target):
                types[module].append(name)
        needed = max(needed, FLOAT * sum(work.weights(m) * len(own) for m, own in types.items()))
    return min(DECODED_BYTES, needed)


def _states(work: RunWork, window: int) -> int:
    """Bytes of hidden states of the mixes that are measured at once, before and after a block."""
    mixes = RaceSchedule().first_candidates + 1 if work.search.method != "knapsack" else 3
    windows = math.ceil(AT_ONCE["cpu"] / work.budget.window)
    return 2 * mixes * windows * window
