"""What a long job on one machine needs: files, the work directory, progress, devices and memory.

In: paths, tensors, callbacks. Out: files that appear whole or not at all, artefacts that a stopped
run continues from, progress on stderr. Nothing here knows what a model is.
"""
