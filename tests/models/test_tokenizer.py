import jax
import numpy as np
import pytest

from refocus_jax.focus.resample import area_matrix
from tests.fixtures import small

IMAGE = np.tanh(small.random(0, 2, small.IMAGE_SIZE, small.IMAGE_SIZE, 3))
VIEWS = [small.random(20 + k, 2, small.STRIDE * p, small.STRIDE * p, 3) for k, p in enumerate(small.GRIDS)]


class Structure:
    """The structure tokenizer's methods, compiled, on one set of parameters."""

    def __init__(self, **settings):
        self.tokenizer = small.tokenizer(alias=False, **settings)
        self.params = small.tokenizer_params(self.tokenizer)["structure"]

        self.latents = jax.jit(lambda views: self.apply("latents", views))

    def apply(self, method, *args):
        return self.tokenizer.structure.apply({"params": self.params}, *args, method=method)


@pytest.fixture(scope="module")
def focus() -> Structure:
    return Structure(pyramid="focus", residual=False)


@pytest.fixture(scope="module")
def var() -> Structure:
    return Structure(pyramid="var", residual=True)


@pytest.fixture(scope="module")
def dual():
    tokenizer = small.tokenizer()
    return tokenizer, small.tokenizer_params(tokenizer), jax.jit(tokenizer.encode)


def test_focus_pyramid_encodes_every_view(focus):
    latents = focus.latents(VIEWS)
    for scale in range(3):
        changed = focus.latents([view + (k == scale) for k, view in enumerate(VIEWS)])
        moved = [not np.array_equal(a, b) for a, b in zip(latents, changed, strict=True)]
        assert moved == [k == scale for k in range(3)]
    assert [z.shape for z in latents] == [(2, p, p, small.CHANNELS) for p in small.GRIDS]


def test_var_pyramid_pools_the_encoding_of_the_image(var):
    latents = var.latents(VIEWS)
    for latent, side in zip(latents, small.GRIDS, strict=True):
        pooled = np.einsum("yh,bhwc,xw->byxc", area_matrix(3, side), latents[-1], area_matrix(3, side))
        np.testing.assert_allclose(latent, pooled, atol=1e-5)
    for a, b in zip(latents, var.latents([0 * VIEWS[0], 0 * VIEWS[1], VIEWS[2]]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_tokens_alone_give_the_reconstruction(focus):
    @jax.jit
    def run(views):
        tokens = focus.apply("encode", views)
        return tokens, focus.apply("decode", focus.apply("f_hats", tokens)[-1]), focus.apply("__call__", views)

    tokens, decoded, reconstruction = run(VIEWS)
    assert [t.shape for t in tokens] == [(2, p, p) for p in small.GRIDS]
    np.testing.assert_allclose(decoded, reconstruction, atol=1e-5)


def test_decoded_images_lie_between_minus_one_and_one(focus):
    f_hat = 100 * small.random(0, 2, 3, 3, small.CHANNELS)
    louder = jax.tree.map(lambda a: 5 * np.asarray(a), focus.params["autoencoder"])
    image = np.asarray(jax.jit(focus.tokenizer.decode)({"structure": {**focus.params, "autoencoder": louder}}, f_hat))
    assert image.min() == -1 and image.max() == 1


def test_token_maps_of_both_streams(dual):
    _, params, encode = dual
    structure, alias = encode(params, IMAGE)
    assert [t.shape for t in structure] == [(2, p, p) for p in small.GRIDS]
    assert [t.shape for t in alias] == [(2, p, p) for p in small.GRIDS[:-1]]  # the last residual is noise alone
    assert all(t.dtype == np.int32 and np.min(t) >= 0 for t in (*structure, *alias))
    assert max(map(np.max, structure)) < small.VOCAB and max(map(np.max, alias)) < small.VOCAB // 2


def test_residual_std_normalizes_the_alias_stream_alone(dual):
    """Each scale by its own: if the image and the deviation are multiplied by one factor, that scale stays the same."""
    _, params, encode = dual
    structure, alias = encode(params, IMAGE)
    louder = {**params, "residual_std": params["residual_std"] * np.asarray([1, 1024], np.float32)}
    same_structure, changed = encode(louder, IMAGE)
    for a, b in zip((*structure, alias[0]), (*same_structure, changed[0]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(alias[1], changed[1])
    _, scaled = encode(louder, 1024 * IMAGE)
    np.testing.assert_array_equal(alias[1], scaled[1])


def test_streams_have_parameters_of_their_own(dual):
    tokenizer, params, encode = dual
    assert set(jax.eval_shape(tokenizer.init, jax.random.key(0))) == {"structure", "alias"}
    assert set(params["structure"]) == {"autoencoder", "quantizer"}
    assert tokenizer.alias_params(params) is params["alias"]
    other = small.tokenizer_params(tokenizer, seed=1)
    structure, alias = encode(params, IMAGE)
    changed_structure, same_alias = encode({**params, "structure": other["structure"]}, IMAGE)
    same_structure, changed_alias = encode({**params, "alias": other["alias"]}, IMAGE)
    for a, b in zip((*structure, *alias), (*same_structure, *same_alias), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(structure[-1], changed_structure[-1])
    assert not np.array_equal(alias[-1], changed_alias[-1])


def test_shared_streams_have_one_encoder_and_one_codebook():
    tokenizer = small.tokenizer(shared=True)
    params = small.tokenizer_params(tokenizer)
    assert set(jax.eval_shape(tokenizer.init, jax.random.key(0))) == {"structure"}
    used = tokenizer.alias_params(params)
    assert used["autoencoder"] is params["structure"]["autoencoder"]
    assert used["codebook"] is params["structure"]["quantizer"]["codebook"]
    structure, alias = jax.eval_shape(tokenizer.encode, params, IMAGE)
    assert len(structure) == 3 and len(alias) == 2


def test_without_an_alias_stream_there_are_no_alias_tokens(focus):
    assert set(jax.eval_shape(focus.tokenizer.init, jax.random.key(0))) == {"structure"}
    structure, alias = jax.eval_shape(focus.tokenizer.encode, {"structure": focus.params}, IMAGE)
    assert len(structure) == 3 and alias == []


@pytest.mark.parametrize("pyramid, sides", [("focus", (2, 4, 6)), ("var", (6, 6, 6))])
def test_views_decode_at_their_own_side(pyramid, sides, request):
    structure = request.getfixturevalue(pyramid)
    f_hat = np.zeros((2, 3, 3, small.CHANNELS), np.float32)
    for scale, side in enumerate(sides):
        image = jax.eval_shape(lambda p, f, s=scale: structure.tokenizer.decode_view(p, f, s),
                               {"structure": structure.params}, f_hat)
        assert image.shape == (2, side, side, 3)


@pytest.mark.parametrize("pyramid", ["focus", "var"])
def test_all_views_decode_as_each_alone(pyramid, request):
    structure = request.getfixturevalue(pyramid)
    tokenizer, params = structure.tokenizer, {"structure": structure.params}
    f_hats = [small.random(k, 2, 3, 3, small.CHANNELS) for k in range(3)]
    together, alone = jax.jit(lambda params, f_hats: (
        tokenizer.decode_views(params, f_hats),
        [tokenizer.decode_view(params, f_hat, k) for k, f_hat in enumerate(f_hats)]))(params, f_hats)
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
        assert a.std() > 0.1
