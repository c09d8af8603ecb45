"""Revival of dead codes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from refocus_jax.training import codebook


def test_count():
    tokens = [jnp.array([[0, 1]]), jnp.array([[1, 3]])]
    assert codebook.count(tokens, 5).tolist() == [1, 2, 0, 1, 0]


def test_candidates_come_in_equal_shares_from_every_scale():
    inputs = [jnp.full((2, 1, 1, 3), 1.0), jnp.full((2, 4, 4, 3), 2.0), jnp.full((2, 8, 8, 3), 3.0)]
    drawn = np.asarray(codebook.candidates(jax.random.key(0), inputs, 9))
    values, counts = np.unique(drawn[:, 0], return_counts=True)
    assert values.tolist() == [1, 2, 3] and counts.tolist() == [3, 3, 3]


def test_only_dead_codes_are_replaced_and_by_inputs():
    embedding = jnp.zeros((4, 2))
    inputs = [jnp.ones((1, 1, 1, 2)), 2 * jnp.ones((1, 2, 2, 2))]
    dead = jnp.array([False, True, False, True])
    result = np.asarray(codebook.revive(jax.random.key(0), embedding, dead, inputs))
    np.testing.assert_array_equal(result, [[0, 0], [1, 1], [0, 0], [2, 2]])


def test_the_nth_dead_code_comes_from_scale_n_mod_k_and_is_drawn_on_its_own():
    """Scale k has 1000 rows of numbers in [k, k + 1)."""
    inputs = [k + jnp.linspace(0, 0.999, 1000).reshape(10, 10, 10, 1) for k in range(3)]
    dead = jnp.array([True, False, True, True, False, True, True] * 10)
    revived = np.asarray(codebook.revive(jax.random.key(0), jnp.full((70, 1), -1.0), dead, inputs))[:, 0]
    np.testing.assert_array_equal(revived[~dead], -1)
    np.testing.assert_array_equal(np.floor(revived[dead]), np.arange(50) % 3)
    assert len(np.unique(revived[dead])) > 45


def test_moments_of_dead_codes_alone_are_reset():
    params = {"structure": {"codebook": {"embedding": jnp.ones((3, 2))}, "kernel": jnp.ones((3, 2))}}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())
    _, state = optimizer.update(params, optimizer.init(params), params)
    dead = jnp.array([True, False, True])
    after = codebook.reset_moments(state, ("structure", "codebook", "embedding"), dead)
    before_adam, adam = state[1], after[1]
    for moment, old in ((adam.mu, before_adam.mu), (adam.nu, before_adam.nu)):
        rows = np.asarray(moment["structure"]["codebook"]["embedding"])
        assert (rows[[0, 2]] == 0).all() and (rows[1] != 0).all()
        np.testing.assert_array_equal(moment["structure"]["kernel"], old["structure"]["kernel"])
