"""The results of runs, told: a page, a model card, an upload.

In: a work directory and the evaluations kept in it. Out: one HTML page, plots, a README.md for the
hub, Ollama Modelfiles.
"""
