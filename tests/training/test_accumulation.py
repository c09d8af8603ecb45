import jax.numpy as jnp
import numpy as np
import pytest

from refocus_jax.training.accumulation import mean_over_parts


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_means_are_those_of_the_whole_and_examples_keep_their_places(parts):
    batch = {"x": np.arange(12, dtype=np.float32).reshape(6, 2), "skipped": None}

    def function(part, number):
        assert part["x"].shape == (6 // parts, 2)
        return {"mean": part["x"].mean(), "number": jnp.float32(number)}, part["x"] + 1

    means, kept = mean_over_parts(function, parts, batch)
    assert means["mean"] == batch["x"].mean() and means["number"] == (parts - 1) / 2
    np.testing.assert_array_equal(kept, batch["x"] + 1)
