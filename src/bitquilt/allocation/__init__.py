"""Allocation: which type each matrix of a model gets, within an exact number of bytes.

In: a model, a budget, a recipe or a preset, and the layer bank. Out: an allocation for each file,
and how it compares with others on text that no search has read. A plan (:mod:`.plan`) has the exact
size before any work; candidates (:mod:`.candidates`) get scores (:mod:`.sensitivity`,
:mod:`.interactions`); the exact knapsack (:mod:`.solver`) is where a search (:mod:`.race_search`)
starts from.
"""

SEARCH_METHODS = ("race", "knapsack", "evopress")
"""Ways to an allocation: ``race`` lets proposals race from the exact knapsack on, ``knapsack`` is
the exact knapsack on the scores alone, and ``evopress`` is the published baseline."""

SCORES = ("predicted", "measured")
"""Where scores come from: statistics of the calibration text, or the KL of each matrix on each type
alone."""
