"""Scales and norms of a mix learned from the full-precision model, its codes as they are."""
