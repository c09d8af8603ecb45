import itertools

import jax
import numpy as np

from refocus_jax.models.randomness import fold_in, seed_of


def test_keys_of_other_names_and_of_other_keys_differ():
    keys = [jax.random.key(0), jax.random.key(1)]
    folded = [fold_in(key, name) for key in keys for name in ("noise", "drop path")]
    found = [tuple(jax.random.key_data(key).tolist()) for key in (*keys, *folded)]
    assert len(set(found)) == 6
    assert (jax.random.key_data(fold_in(keys[0], "noise")) == jax.random.key_data(folded[0])).all()


def test_seeds_of_neighbours_and_of_other_names_differ():
    found = [seed_of(seed, name) for seed in range(300) for name in ("tokenizer images", "generator images", "encode")]
    assert len(set(found)) == 900 and all(0 <= seed < 2**32 for seed in found)
    # Nor do they count up with the seed, which would make one use's stream another's of a later seed.
    assert len(set(np.diff(found[::3]).tolist())) > 290
    assert seed_of(2**32 - 1, "encode") == seed_of(2**32 - 1, "encode")
    for (a, b), name in itertools.product(itertools.pairwise(range(5)), ("encode", "noise")):
        assert seed_of(a, name) != seed_of(b, name)
