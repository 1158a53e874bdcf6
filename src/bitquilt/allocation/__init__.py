"""Allocation: which type each matrix of a model gets, within an exact number of bytes.

In: a model, a budget, a recipe or a preset, and the layer bank. Out: an allocation for each file,
and how it compares with others on text that no search has read. A plan (:mod:`.plan`) has the exact
size before any work; candidates (:mod:`.candidates`) get scores (:mod:`.sensitivity`,
:mod:`.interactions`); the exact knapsack (:mod:`.solver`) is where a search (:mod:`.race_search`)
starts from.
"""
