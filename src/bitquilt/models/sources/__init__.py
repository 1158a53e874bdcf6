"""Where models come from: a Hugging Face directory or hub id, or a GGUF file.

In: what a user types. Out: a :class:`~bitquilt.models.checkpoint.Checkpoint`, its tensors read when
they are asked for.
"""
