import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refocus_jax.models.discriminator import PatchDiscriminator
from tests.fixtures import small


def test_one_logit_per_patch_and_channels_that_double_up_to_eightfold():
    network = PatchDiscriminator(channels=8, num_layers=5, norm_groups=4, dtype=jnp.bfloat16)
    image = jnp.zeros((2, 128, 128, 3))
    params = jax.eval_shape(network.init, jax.random.key(0), image)
    widths = [params["params"][f"conv_{layer}"]["kernel"].shape[-1] for layer in range(6)]
    assert widths == [8, 16, 32, 64, 64, 64]
    logits = jax.eval_shape(network.apply, params, image)
    assert logits.shape == (2, 2, 2, 1) and logits.dtype == jnp.float32


def test_samples_do_not_mix():
    """Unlike BatchNorm: all logits of a sample depend on that sample, and on no other."""
    network, image = PatchDiscriminator(channels=8, num_layers=1, norm_groups=4), small.random(0, 2, 16, 16, 3)
    params = small.random_params(network.init, image)
    gradient = np.asarray(jax.jit(jax.grad(lambda image: jnp.sum(jnp.sin(network.apply(params, image)[0]))))(image))
    assert (gradient[0] != 0).all()
    np.testing.assert_array_equal(gradient[1], 0)


def test_groups_that_do_not_divide_the_channels_are_named():
    network = PatchDiscriminator(channels=8, num_layers=1, norm_groups=32)
    with pytest.raises(ValueError, match="norm_groups 32 does not divide 16 channels"):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
