"""Is it still the model? Written files against their original, and how fast they run.

In: model files and the checkpoint they were made from. Out: divergence by domain with intervals,
samples, speeds; kept in a work directory for the report and the card.
"""
