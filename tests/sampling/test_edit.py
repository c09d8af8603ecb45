import jax
import numpy as np
import pytest

from refocus_jax.sampling import decode
from refocus_jax.sampling.edit import edit, token_masks
from tests.fixtures import small

LABELS = np.asarray([1, 3], np.int32)
SETTINGS = decode.SamplingSettings(cfg=1.0, top_k=0, top_p=0.0)


class Editor:
    def __init__(self, residual: bool):
        self.network, self.quantizer = small.transformer(), small.quantizer(residual)
        self.params = small.transformer_params(self.network)
        self.quantizer_params = small.quantizer_params(self.quantizer)
        self.latents = [small.random(k, 2, p, p, small.CHANNELS) for k, p in enumerate(small.GRIDS)]
        self.own = jax.jit(lambda latents: self.quantizer.apply(
            {"params": self.quantizer_params}, latents, method="quantize"))(self.latents)
        self._edit = jax.jit(lambda mask, keys: edit(self.network, self.params, self.quantizer, self.quantizer_params,
                                                     self.latents, mask, LABELS, keys, SETTINGS))

    def edit(self, mask, seed=0):
        return self._edit(np.stack([mask, mask]), decode.sample_keys(seed, LABELS))


@pytest.fixture(scope="module", params=[True, False], ids=["residual", "independent"])
def editor(request) -> Editor:
    return Editor(request.param)


def box(top, bottom, left, right):
    mask = np.zeros((small.IMAGE_SIZE, small.IMAGE_SIZE), bool)
    mask[top:bottom, left:right] = True
    return mask


def test_without_a_mask_the_tokens_are_the_images_own(editor):
    edited = editor.edit(box(0, 0, 0, 0))
    for got, own in zip(edited.tokens, editor.own.tokens, strict=True):
        np.testing.assert_array_equal(got, own)
    np.testing.assert_allclose(edited.f_hat[-1], editor.own.f_hats[-1], atol=1e-5)


def test_with_everything_masked_it_is_a_sample(editor):
    drawn = jax.jit(lambda keys: decode.sample(
        editor.network, editor.params, editor.quantizer, editor.quantizer_params, LABELS, keys, SETTINGS))(
            decode.sample_keys(5, LABELS))
    for got, expected in zip(editor.edit(box(0, 6, 0, 6), seed=5).tokens, drawn.tokens, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_tokens_change_inside_the_mask_alone(editor):
    """The lower right quarter: one token of four at the second scale."""
    mask = box(2, 6, 2, 6)
    several = [editor.edit(mask, seed) for seed in range(6)]
    for scale, token_mask in enumerate(token_masks(mask[None], small.GRIDS)):
        tokens = np.stack([np.asarray(one.tokens[scale][0]) for one in several])
        varies = (tokens != tokens[0]).any(0)
        assert not (varies & ~np.asarray(token_mask[0])).any() or editor.quantizer.residual
        assert (varies & np.asarray(token_mask[0])).any() == bool(token_mask.any())
    if not editor.quantizer.residual:
        np.testing.assert_array_equal(np.asarray(several[0].tokens[2])[:, 0], np.asarray(editor.own.tokens[2])[:, 0])


def test_outside_the_mask_residual_tokens_make_up_for_what_was_drawn():
    """They are chosen after the f_hat that has been drawn, not copied."""
    editor = Editor(residual=True)
    edited = editor.edit(box(0, 6, 0, 4))
    target = editor.latents[2] - np.asarray(jax.jit(lambda f_hat: editor.quantizer.apply(
        {"params": editor.quantizer_params}, f_hat, 2, method="view"))(edited.f_hat[1]))
    codes = np.asarray(editor.quantizer_params["codebook"]["embedding"])
    nearest = np.argmin(np.square(target[..., None, :] - codes).sum(-1), -1)
    np.testing.assert_array_equal(np.asarray(edited.tokens[2])[:, :, 2], nearest[:, :, 2])
    assert (nearest[:, :, 2] != np.asarray(editor.own.tokens[2])[:, :, 2]).any()


def test_token_masks():
    """Most of a coarse cell, any pixel of a fine one."""
    masks = token_masks(box(0, 6, 0, 4)[None], small.GRIDS)
    assert [np.asarray(mask)[0].tolist() for mask in masks] == [
        [[True]], [[True, False]] * 2, [[True, True, False]] * 3]
    masks = token_masks(box(5, 6, 5, 6)[None], small.GRIDS)
    assert [int(mask.sum()) for mask in masks] == [0, 0, 1]


def test_smoothing_is_refused():
    with pytest.raises(ValueError, match="sampling.smooth is True"):
        edit(None, None, None, None, [], None, LABELS, None, decode.SamplingSettings(smooth=True))
