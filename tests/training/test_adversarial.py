"""Hinge losses and the adaptive weight."""

import jax.numpy as jnp
import numpy as np

from refocus_jax.training import adversarial


def test_hinge_is_zero_beyond_the_margin_and_grows_inside():
    ones = jnp.ones((2, 3, 3, 1))
    assert adversarial.discriminator_loss(2 * ones, -2 * ones) == 0
    assert adversarial.discriminator_loss(0 * ones, 0 * ones) == 1
    assert adversarial.generator_loss(3 * ones) == -3


def test_adaptive_weight_is_the_ratio_of_gradients_up_to_the_cap():
    features = jnp.arange(1.0, 7.0).reshape(1, 2, 3, 1)

    def weight(reconstruction, fool, cap=1e9):
        return float(adversarial.adaptive_weight(lambda w, x: w * x, jnp.float32(0.5), features,
                                                 lambda y: reconstruction * y.sum(), lambda y: fool * y.sum(), cap))

    np.testing.assert_allclose(weight(6.0, 2.0), 3.0, rtol=1e-5)
    assert weight(6.0, 2.0, cap=1.5) == 1.5
