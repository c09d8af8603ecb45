import jax
import numpy as np
import pytest

from refocus_jax.models.attention import prefix_attention, scale_offsets
from tests.fixtures import small


def masked_attention(q, k, v, mask_lm):
    """The textbook form in float64: softmax over all keys, with -inf where the mask is False."""
    logits = np.einsum("blnh,bmnh->bnlm", q, k, dtype=np.float64)
    logits = np.where(mask_lm, logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bnlm,bmnh->blnh", weights / weights.sum(-1, keepdims=True), v)


def test_scale_offsets():
    assert scale_offsets((1, 2, 3)) == (0, 1, 5, 14)


@pytest.mark.parametrize("query_offsets, key_ends", [((0, 1, 5, 14), (1, 5, 14)), ((0, 4, 13), (1, 5))],
                         ids=["self-attention over all scales", "cross-attention to earlier scales"])
def test_prefix_attention_is_masked_attention(query_offsets, key_ends):
    queries, keys = query_offsets[-1], key_ends[-1]
    q, k, v = (small.random(seed, 2, n, 2, 4) for seed, n in enumerate((queries, keys, keys)))
    query_scale = np.searchsorted(query_offsets, np.arange(queries), side="right") - 1
    mask = np.arange(keys)[None] < np.asarray(key_ends)[query_scale][:, None]
    result = jax.jit(prefix_attention, static_argnums=(3, 4))(q, k, v, query_offsets, key_ends)
    np.testing.assert_allclose(result, masked_attention(q, k, v, mask), atol=1e-5)


def test_prefix_attention_needs_one_end_per_group_of_queries():
    q = small.random(0, 1, 5, 2, 4)
    with pytest.raises(ValueError):
        jax.eval_shape(lambda q: prefix_attention(q, q, q, (0, 1, 5), (1, 5, 5)), q)
