"""Fields of a config that are looked at before they are calculated with."""

from __future__ import annotations

import pytest

from bitquilt.errors import UserError
from bitquilt.models.config_fields import refuse_odd_fields


def test_a_window_of_zero_is_none_where_none_is_used():
    refuse_odd_fields({"sliding_window": 0, "use_sliding_window": False})
    for config in ({"sliding_window": 0}, {"sliding_window": 0, "use_sliding_window": True}):
        with pytest.raises(UserError, match="sliding_window"):
            refuse_odd_fields(config)


def test_what_transformers_writes_for_qwen2_moe_is_taken():
    from transformers import Qwen2MoeConfig

    refuse_odd_fields(Qwen2MoeConfig().to_dict())
