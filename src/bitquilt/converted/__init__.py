"""Models that bitquilt has no tables of: converted by others, calibrated by transformers, rounded.

In: a Hugging Face directory of whatever architecture. Out: a GGUF file or an MLX directory of an
exact size. The format's own converter writes a base (:mod:`bitquilt.bases`); its matrices are
replaced, and everything else stays as it is.

    formats/           what differs between the bases of GGUF and MLX, one object a format
    moments.py         what calibration says of a base's matrix
    prediction.py      what each type costs a matrix, from a sample of its rows
    allocation.py      which type each matrix gets
    rounding.py        all matrices on their types, with error feedback
    layer_passes.py    prediction and rounding while a layer's moments are in memory
    closing.py         what the files lose, measured
    plan_base.py       sizes and types before any work
    quantize_base.py   all of it, for a command
"""
