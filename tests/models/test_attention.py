import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refocus_jax.models import attention
from refocus_jax.models.attention import prefix_attention, scale_offsets
from tests.fixtures import small


def masked_attention(q, k, v, mask_lm):
    """The textbook form in float64: softmax over all keys, with -inf where the mask is False."""
    logits = np.einsum("bnlh,bnmh->bnlm", q, k, dtype=np.float64)
    logits = np.where(mask_lm, logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bnlm,bnmh->bnlh", weights / weights.sum(-1, keepdims=True), v)


def test_scale_offsets():
    assert scale_offsets((1, 2, 3)) == (0, 1, 5, 14)


@pytest.mark.parametrize("query_offsets, key_ends", [((0, 1, 5, 14), (1, 5, 14)), ((0, 4, 13), (1, 5))],
                         ids=["self-attention over all scales", "cross-attention to earlier scales"])
def test_prefix_attention_is_masked_attention(query_offsets, key_ends):
    queries, keys = query_offsets[-1], key_ends[-1]
    q, k, v = (small.random(seed, 2, 3, n, 4) for seed, n in enumerate((queries, keys, keys)))
    query_scale = np.searchsorted(query_offsets, np.arange(queries), side="right") - 1
    mask = np.arange(keys)[None] < np.asarray(key_ends)[query_scale][:, None]
    result = jax.jit(prefix_attention, static_argnums=(3, 4))(q, k, v, query_offsets, key_ends)
    np.testing.assert_allclose(result, masked_attention(q, k, v, mask), atol=1e-5)


def test_attention_one_sequence_at_a_time_is_the_same(monkeypatch):
    """What a CPU does with logits beyond its caches, and its gradient."""
    q, k, v = (small.random(seed, 3, 2, n, 4) for seed, n in enumerate((5, 7, 7)))

    def loss(q, k, v):
        return jnp.sum(jnp.square(attention.dense_attention(q, k, v)))

    expected = jax.value_and_grad(loss, argnums=(0, 1, 2))(q, k, v)
    monkeypatch.setattr(attention, "_CPU_LOGITS_BYTES", 0)
    got = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(q, k, v)
    assert "scan" in str(jax.make_jaxpr(attention.dense_attention)(q, k, v))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)


def test_heads_are_split_and_merged():
    x = small.random(0, 2, 3, 8)
    heads = attention.split_heads(x, 2)
    assert heads.shape == (2, 2, 3, 4)
    np.testing.assert_array_equal(heads[:, 1, :, 0], x[:, :, 4])
    np.testing.assert_array_equal(attention.merge_heads(heads), x)


def test_prefix_attention_needs_one_end_per_group_of_queries():
    q = small.random(0, 1, 2, 5, 4)
    with pytest.raises(ValueError):
        jax.eval_shape(lambda q: prefix_attention(q, q, q, (0, 1, 5), (1, 5, 5)), q)
