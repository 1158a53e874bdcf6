"""Bases: what converters write of models that bitquilt has no tables of, and what they read.

A base is an unquantized GGUF file by llama.cpp's own converter, or an MLX directory by mlx-lm's.
Which of its matrices is which parameter of the Hugging Face model is found by their content.
transformers runs the model, and every matrix product with a parameter is watched. No architecture
is named here.

    converter.py, converter_child.py, base_file.py    GGUF files: made, and read
    served_base.py    a GGUF file's header alone, whose numbers the converter gives
    mlx_base.py, mlx_child.py    MLX directories: made, and read
    vision.py         the vision tower, a file of its own
    room.py           whether memory has room for the model
    lent_weights.py   weights that stay in their files until they are used
    deferred_stacks.py    experts that are stacked when they are read
    partners.py       matrices matched with parameters
    relations.py      what was matched, for people
    products.py       what parameters are multiplied with
    importance.py     the model, and an importance matrix of its base
    reading.py        text through the model, forward and back: by the next two, or as a whole
    layerwise.py, one_pass.py    layer by layer, with what the model gives each layer
    recomputed.py     as a whole, with layers that are computed again on the way back
    backward.py, fisher.py, lookups.py    what is watched meanwhile: gradients, products, embeddings
    statistics.py     Hessians and gradients of its matrices, kept
    two_steps.py, decoded_model.py    the model on text: itself, and with a file's numbers
"""
