"""Every test runs on two simulated CPU devices, compiled fast rather than to run fast, with no silent broadcasting."""

import os
import tempfile

# Read when jax is first imported.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from configs import tiny  # noqa: E402

jax.config.update("jax_disable_most_optimizations", True)  # halves the time of tests, which is mostly compilation
jax.config.update("jax_numpy_rank_promotion", "raise")
# The same program is compiled once for all tests of a session, however many functions it is jitted from.
_CACHE = tempfile.TemporaryDirectory()
jax.config.update("jax_compilation_cache_dir", _CACHE.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


@pytest.fixture(scope="session")
def micro():
    """Config of 8 px images, grids (1, 2, 4), depth 4; a function, since configs are mutable."""

    def make(argument=None):
        c = tiny.get_config(argument)
        c.update(image_size=8, grid_sizes=(1, 2, 4), tokenizer_batch_size=4, generator_batch_size=4)
        c.focus.rho_max = 1.5
        c.tokenizer.update(channels=4, channel_multipliers=(1, 2), norm_groups=2, vocab_size=32, latent_channels=4)
        c.alias.update(channels=8, norm_groups=2, vocab_size=16, latent_channels=4)
        c.discriminator.update(channels=4, num_layers=1, norm_groups=2)
        c.adversarial.start = 2
        c.revival.every = 2
        c.generator.update(depth=4, width=16, num_heads=2, drop_path_rate=0.1)
        for stage in (c.tokenizer_training, c.generator_training):
            stage.update(steps=6, log_every=1, evaluate_every=3, save_every=2)
        return c

    return make


@pytest.fixture(scope="session")
def images():
    """(64, 8, 8, 3) uint8: smooth random images, the same every time."""
    coarse = np.random.default_rng(0).uniform(0, 255, (64, 2, 2, 3))
    return np.asarray(jax.image.resize(coarse, (64, 8, 8, 3), "linear")).astype(np.uint8)
