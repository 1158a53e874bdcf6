"""Recommended sampling as metadata."""

from __future__ import annotations

from bitquilt.gguf.sampling import sampling_keys


def test_sampling_without_a_temperature_is_at_one_as_in_transformers() -> None:
    assert sampling_keys({"do_sample": True, "top_k": 20}) == {
        "general.sampling.temp": 1.0,
        "general.sampling.top_k": 20,
    }
    null = {"do_sample": True, "temperature": None}
    assert sampling_keys(null) == {"general.sampling.temp": 1.0}
    assert sampling_keys({"temperature": 0.6}) == {}
