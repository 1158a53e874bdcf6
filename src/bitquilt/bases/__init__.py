"""Bases: unquantized GGUF files of models that bitquilt has no tables of, and what they read.

llama.cpp's own converter writes the base (:mod:`.converter`). Which of its matrices is which
parameter of the Hugging Face model is found by their content (:mod:`.partners`). transformers runs
the model, whose weights stay in their files until they are used (:mod:`.lent_weights`), and every
matrix product with a parameter is watched (:mod:`.products`), so that the base gets an importance
matrix (:mod:`.importance`). No architecture is named here.
"""
