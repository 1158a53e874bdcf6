"""The search for a mix: which type each matrix gets, within an exact number of bytes."""

SEARCH_METHODS = ("race", "knapsack", "evopress")
"""Races from the exact knapsack on; the exact knapsack on the scores alone; EvoPress."""

SCORES = ("predicted", "measured")
"""Where scores come from: the moments, or every cell's KL with all else exact."""
