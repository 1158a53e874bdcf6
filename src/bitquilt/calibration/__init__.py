"""What text says about a model: windows of tokens, and each matrix's second moments.

In: a checkpoint and documents. Out: for every matrix the Hessian of its inputs and the mean squares
of its output gradients, kept in the work directory.
"""
