import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refocus_jax.models.quantizer import MultiScaleQuantizer, nearest_code, phi_indices
from tests.fixtures import small

LATENTS = [small.random(10 + k, 2, p, p, small.CHANNELS) for k, p in enumerate(small.GRIDS)]


class Functions:
    """A quantizer's methods, compiled, on one set of parameters."""

    def __init__(self, residual: bool):
        self.module = small.quantizer(residual)
        self.params = small.quantizer_params(self.module)

    def __getattr__(self, method: str):
        def apply(params, *args):
            return self.module.apply({"params": params}, *args, method=method)
        function = jax.jit(apply, static_argnums=(2,) if method == "view" else ())
        setattr(self, method, lambda *args: function(self.params, *args))
        return getattr(self, method)


@pytest.fixture(scope="module", params=[False, True], ids=["independent", "residual"])
def quantizer(request) -> Functions:
    return Functions(request.param)


def test_nearest_code_is_the_brute_force_minimum():
    vectors, codes = small.random(0, 3, 5, 8), small.random(1, 40, 8)
    distances = np.square(np.asarray(vectors, np.float64)[..., None, :] - np.asarray(codes, np.float64)).sum(-1)
    tokens = jax.jit(nearest_code)(vectors, codes)
    assert tokens.shape == (3, 5) and tokens.dtype == jnp.int32
    np.testing.assert_array_equal(tokens, distances.argmin(-1))


def test_nearest_code_takes_the_first_on_ties():
    codes = np.asarray([[9, 9], [1, 0], [-1, 0], [1, 0]], np.float32)
    vectors = np.asarray([[1, 0], [0, 3], [-1, 0.1]], np.float32)
    np.testing.assert_array_equal(jax.jit(nearest_code)(vectors, codes), [1, 1, 2])


def test_phi_ticks():
    assert phi_indices(10, 4) == (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)  # two exact ties, one of them wrong in float32
    assert phi_indices(10, 1) == (0,) * 10
    assert phi_indices(3, 3) == (0, 1, 2)
    assert phi_indices(10, 2) == (0,) * 5 + (1,) * 5
    assert phi_indices(10, 5) == (0, 0, 1, 1, 2, 2, 3, 3, 4, 4)


def test_encoding_and_decoding_run_one_recurrence(quantizer):
    quantized = quantizer.quantize(LATENTS)
    for encoded, decoded in zip(quantized.f_hats, quantizer.f_hats(quantized.tokens), strict=True):
        assert encoded.shape == (2, 3, 3, small.CHANNELS)
        np.testing.assert_array_equal(encoded, decoded)


def test_first_token_maps_alone_give_the_first_f_hats(quantizer):
    tokens = small.random_tokens(0)
    np.testing.assert_array_equal(quantizer.f_hats(tokens[:2])[-1], quantizer.f_hats(tokens)[1])


def test_generator_inputs_are_views_of_f_hat_at_the_next_side(quantizer):
    tokens = small.random_tokens(0)
    views = [quantizer.view(f_hat, scale + 1) for scale, f_hat in enumerate(quantizer.f_hats(tokens)[:-1])]
    expected = np.concatenate([np.reshape(v, (2, -1, small.CHANNELS)) for v in views], axis=1)
    inputs = quantizer.generator_inputs(tokens)
    assert inputs.shape == (2, small.LENGTH - 1, small.CHANNELS)
    np.testing.assert_allclose(inputs, expected, atol=1e-6)


def test_generator_inputs_ignore_the_last_map(quantizer):
    tokens, others = small.random_tokens(0), small.random_tokens(1)
    np.testing.assert_array_equal(quantizer.generator_inputs(tokens),
                                  quantizer.generator_inputs([*tokens[:-1], others[-1]]))
    inputs, changed = (np.asarray(quantizer.generator_inputs([tokens[0], second, tokens[2]]))
                       for second in (tokens[1], others[1]))
    np.testing.assert_array_equal(inputs[:, :4], changed[:, :4])
    assert (inputs[:, 4:] != changed[:, 4:]).any()


def test_which_maps_an_f_hat_depends_on(quantizer):
    """Residual: on all maps so far. Independent: on its own map alone."""
    tokens, others = small.random_tokens(0), small.random_tokens(1)
    f_hats = quantizer.f_hats(tokens)
    for changed in range(3):
        new = quantizer.f_hats([others[k] if k == changed else tokens[k] for k in range(3)])
        for scale in range(3):
            depends = scale >= changed if quantizer.module.residual else scale == changed
            assert np.array_equal(f_hats[scale], new[scale]) != depends


def test_what_the_nearest_code_is_sought_for(quantizer):
    inputs = quantizer.quantize(LATENTS).inputs
    for scale, (latent, target) in enumerate(zip(LATENTS, inputs, strict=True)):
        same = scale == 0 or not quantizer.module.residual
        assert np.array_equal(latent, target) == same


def test_codes_of_the_residuals_reconstruct_the_latent():
    """With a codebook that holds every residual the error falls from scale to scale, and ends at zero."""
    row, column, channel = np.meshgrid(np.arange(3), np.arange(3), np.arange(4), indexing="ij")
    latent = (row * channel - 0.7 * column + 0.3 * np.sin(3 * row * column + channel))[None].astype(np.float32)
    quantizer = MultiScaleQuantizer(grid_sizes=small.GRIDS, vocab_size=small.LENGTH, latent_channels=4, num_phi=0,
                                    residual=True)

    @jax.jit
    def quantize(codes):
        latents = [quantizer.apply({}, latent, scale, method="view") for scale in range(3)]
        return quantizer.apply({"params": {"codebook": {"embedding": codes}}}, latents, method="quantize")

    codes = np.full((small.LENGTH, 4), 1e3, np.float32)
    for scale in range(3):  # the codes so far give the next scale's residuals
        codes[small.OFFSETS[scale]:small.OFFSETS[scale + 1]] = np.reshape(quantize(codes).inputs[scale], (-1, 4))
    errors = [np.abs(np.asarray(f_hat) - latent).mean() for f_hat in quantize(codes).f_hats]
    assert errors[0] > 2 * errors[1] > 0 and errors[2] < 1e-6


def test_gradients_reach_codes_and_phi_but_not_latents(quantizer):
    weight = small.random(2, 2, 3, 3, small.CHANNELS)

    def total(params, latents):
        quantized = quantizer.module.apply({"params": params}, latents, method="quantize")
        total = sum(jnp.sum(f_hat * weight) for f_hat in quantized.f_hats) + sum(map(jnp.sum, quantized.inputs))
        return total, quantized.tokens

    (by_params, by_latents), tokens = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(quantizer.params, LATENTS)
    used = np.zeros(small.VOCAB, bool)
    used[np.concatenate([np.ravel(t) for t in tokens])] = True
    np.testing.assert_array_equal(np.any(by_params["codebook"]["embedding"], axis=-1), used)
    assert all(np.any(leaf) for name in ("phi_0", "phi_1") for leaf in by_params[name].values())
    assert not any(np.any(leaf) for leaf in by_latents)
