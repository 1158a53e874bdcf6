"""Output formats: how an allocation and packed matrices become one file that a stock engine runs.

In: a checkpoint, an allocation, packed matrices. Out: a GGUF file or an MLX directory, its exact
size beforehand, and the checks that it reads back and runs.
"""
