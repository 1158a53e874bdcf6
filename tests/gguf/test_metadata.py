"""Hyperparameters written as keys are the hyperparameters that are read."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bitquilt.gguf.metadata import Hyperparameters, hyperparameter_keys, read_hyperparameters
from tests.gguf.headers import in_a_file

SIZES = st.integers(1, 2**31)
FACTORS = st.integers(1, 64).map(float)
ROPES = st.one_of(
    st.just({"rope_type": "default"}),
    st.fixed_dictionaries({"rope_type": st.just("linear"), "factor": FACTORS}),
    st.fixed_dictionaries(
        {
            "rope_type": st.just("yarn"),
            "factor": FACTORS,
            "original_max_position_embeddings": SIZES,
        }
    ),
)


@given(
    sizes=st.lists(SIZES, min_size=8, max_size=8),
    theta=st.integers(1, 10**7).map(float),
    rope=ROPES,
    own=st.dictionaries(st.sampled_from(["logit_scale", "attention.sliding_window"]), SIZES),
)
def test_hyperparameters_come_back(
    sizes: list[int], theta: float, rope: dict[str, Any], own: dict[str, int]
) -> None:
    (context, width, blocks, mlp, heads, kv_heads, head_dim, vocabulary) = sizes
    written = Hyperparameters(
        context_length=context,
        embedding_length=width,
        block_count=blocks,
        feed_forward_length=mlp,
        head_count=heads,
        head_count_kv=kv_heads,
        head_dim=head_dim,
        rms_epsilon=1e-5,
        rope={"rope_theta": theta, **rope},
        vocab_size=vocabulary,
    )
    keys = hyperparameter_keys("granite", written, own)
    header = in_a_file({"general.architecture": "granite", **keys}, vocabulary)
    assert read_hyperparameters(header) == written
    assert {key: header.get(key) for key in own} == own
