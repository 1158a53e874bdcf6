"""Calibration: second moments of a model's inputs and gradients on a sample of text.

    corpus.py         documents, bundled or the user's own
    text.py           documents → windows of tokens, by the model's own tokenizer
    text_budget.py    how much text each stage reads
    collect.py        one pass forward, one backward: Hessians and gradient moments
    kept_states.py    what the blocks read, kept from the one pass for the other
    text_share.py     a share of the text, and sums of several processes
    shrinkage.py      how far Hessians hold on other text
    output_shrinkage.py  how far moments of output gradients do
    packed_moment.py  Hessians in a quarter of their bytes
    statistics.py     these, read for one matrix at a time
    block_moments.py  those of one block: summed, then saved or used at once
    prediction.py     the KL that a rounding error is predicted to cost
    importance.py     an importance matrix as llama-imatrix collects it

In: a checkpoint and documents. Out: for every matrix the Hessian of its inputs and the mean squares
of its output gradients, kept in the work directory.
"""
