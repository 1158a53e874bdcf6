"""What mlx-lm's classes look for in a config."""

from __future__ import annotations

from bitquilt.bases.mlx_child import completed


def test_a_wrapper_has_fields_in_both_places() -> None:
    config = {"text_config": {"vocab_size": 512, "known": 1}}
    found = completed(config, {"lacking": 2, "known": 3})
    assert found["vocab_size"] == 512
    assert found["lacking"] == found["text_config"]["lacking"] == 2
    assert found["text_config"]["known"] == 1


def test_what_a_config_states_comes_first() -> None:
    config = {"vocab_size": 600, "text_config": {"vocab_size": 512}}
    assert completed(config, {"vocab_size": 700})["vocab_size"] == 600
