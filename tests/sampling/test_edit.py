import jax
import numpy as np
import pytest

from refocus_jax.focus import Pyramid
from refocus_jax.models.bound import Bound
from refocus_jax.sampling import decode
from refocus_jax.sampling.edit import edit, fill, token_masks
from tests.fixtures import small

LABELS = np.asarray([1, 3], np.int32)
OPTICS = Pyramid(grid_sizes=small.GRIDS, stride=small.STRIDE, rho_max=2.0)
SETTINGS = decode.SamplingSettings(cfg=1.0, top_k=0, top_p=0.0)


class Editor:
    def __init__(self, residual: bool, **settings):
        self.network, self.quantizer = small.transformer(**settings), small.quantizer(residual)
        self.params = small.transformer_params(self.network)
        self.quantizer_params = small.quantizer_params(self.quantizer)
        self.latents = [small.random(k, 2, p, p, small.CHANNELS) for k, p in enumerate(small.GRIDS)]
        self.own = jax.jit(lambda latents: self.quantizer.apply(
            {"params": self.quantizer_params}, latents, method="quantize"))(self.latents)
        self.bound = Bound(self.network, self.params), Bound(self.quantizer, self.quantizer_params)
        self._edit = jax.jit(lambda mask, keys: edit(*self.bound, self.latents, token_masks(mask, OPTICS, "focus"),
                                                     LABELS, keys, SETTINGS))

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
    drawn = jax.jit(lambda keys: decode.sample(*editor.bound, LABELS, keys, SETTINGS))(decode.sample_keys(5, LABELS))
    for got, expected in zip(editor.edit(box(0, 6, 0, 6), seed=5).tokens, drawn.tokens, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("architecture", ["var", "mvar"])
def test_kept_tokens_drive_what_is_drawn(architecture):
    """A last scale that is drawn greedily is the argmax of the teacher-forced logits on the image's own tokens."""
    editor = Editor(True, architecture=architecture)
    drawn = [np.full((2, p, p), p == small.GRIDS[-1]) for p in small.GRIDS]
    greedy = decode.SamplingSettings(cfg=0.0, top_k=1, top_p=0.0)

    @jax.jit
    def run(keys):
        inputs = editor.bound[1]("generator_inputs", editor.own.tokens)
        return (edit(*editor.bound, editor.latents, drawn, LABELS, keys, greedy),
                editor.bound[0](None, LABELS, inputs)[0])

    edited, logits = run(decode.sample_keys(0, LABELS))
    for scale in (0, 1):
        np.testing.assert_array_equal(edited.tokens[scale], editor.own.tokens[scale])
    np.testing.assert_array_equal(np.reshape(edited.tokens[2], (2, -1)), logits[:, small.OFFSETS[2]:].argmax(-1))


def test_tokens_change_inside_the_mask_alone(editor):
    """Masks the lower right part, which holds one token of four at the second scale."""
    mask = box(2, 6, 2, 6)
    several = [editor.edit(mask, seed) for seed in range(6)]
    for scale, token_mask in enumerate(token_masks(mask[None], OPTICS, "focus")):
        tokens = np.stack([np.asarray(one.tokens[scale][0]) for one in several])
        varies = (tokens != tokens[0]).any(0)
        assert not (varies & ~np.asarray(token_mask[0])).any() or editor.quantizer.residual
        assert (varies & np.asarray(token_mask[0])).any() == bool(token_mask.any())
    if not editor.quantizer.residual:
        np.testing.assert_array_equal(np.asarray(several[0].tokens[2])[:, 0], np.asarray(editor.own.tokens[2])[:, 0])


def test_outside_the_mask_residual_tokens_make_up_for_what_was_drawn():
    """They are chosen given the f_hat that was drawn, not copied."""
    editor = Editor(residual=True)
    edited = editor.edit(box(0, 6, 0, 4))
    target = editor.latents[2] - np.asarray(jax.jit(lambda f_hat: editor.quantizer.apply(
        {"params": editor.quantizer_params}, f_hat, 2, method="view"))(edited.f_hat[1]))
    codes = np.asarray(editor.quantizer_params["codebook"]["embedding"])
    nearest = np.argmin(np.square(target[..., None, :] - codes).sum(-1), -1)
    np.testing.assert_array_equal(np.asarray(edited.tokens[2])[:, :, 2], nearest[:, :, 2])
    assert (nearest[:, :, 2] != np.asarray(editor.own.tokens[2])[:, :, 2]).any()


def test_token_masks():
    """Coarse tokens are drawn if most of what they see is hidden, fine ones if any pixel is."""
    for pyramid in ("focus", "var"):
        masks = token_masks(box(0, 6, 0, 4)[None], OPTICS, pyramid)
        assert [np.asarray(mask)[0].tolist() for mask in masks] == [
            [[True]], [[True, False]] * 2, [[True, True, False]] * 3]
        masks = token_masks(box(5, 6, 5, 6)[None], OPTICS, pyramid)
        assert [int(mask.sum()) for mask in masks] == [0, 0, 1]


def test_tokens_are_drawn_by_what_they_see():
    """Without blur, the coarsest 2 x 2 view is four pixels of the image; VAR's pyramid pools all pixels."""
    optics = Pyramid(grid_sizes=small.GRIDS, stride=small.STRIDE, rho_max=2.0, psf="none")
    mask = box(0, 6, 1, 2) | box(0, 6, 4, 5)
    assert token_masks(mask[None], optics, "focus")[0].all() and not token_masks(mask[None], optics, "var")[0].any()
    assert not token_masks(~mask[None], optics, "focus")[0].any() and token_masks(~mask[None], optics, "var")[0].all()


@pytest.mark.parametrize("psf", ["disk", "gaussian", "none"])
@pytest.mark.parametrize("pyramid", ["focus", "var"])
def test_all_tokens_are_drawn_or_none_if_all_or_nothing_is_hidden(psf, pyramid):
    optics = Pyramid(grid_sizes=(1, 2, 3, 5), stride=4, rho_max=3.0, psf=psf)
    for hidden in (False, True):
        masks = token_masks(np.full((1, 20, 20), hidden), optics, pyramid)
        assert all((np.asarray(mask) == hidden).all() for mask in masks)


def test_holes_are_filled_with_the_nearest_known_pixel():
    row = np.asarray([[5, 1, 2, 9, 9, 9, 7, 3]], np.uint8)
    filled = fill(np.repeat(row[..., None], 3, 2), row == 9)
    assert filled.dtype == np.uint8 and filled[0, :, 0].tolist()[:4] == [5, 1, 2, 2] and filled[0, 5:, 0].tolist() == [
        7, 7, 3]
    assert filled[0, 4, 0] in (2, 7)


def test_nothing_depends_on_what_is_hidden():
    image, mask = small.random(0, 6, 7, 3), small.random(1, 6, 7) > 0.3
    for hidden in (-1, 1, np.nan, small.random(2, 6, 7, 3)):
        np.testing.assert_array_equal(fill(np.where(mask[..., None], hidden, image), mask), fill(image, mask))
    np.testing.assert_array_equal(fill(image, mask)[~mask], image[~mask])
    np.testing.assert_array_equal(fill(image, np.zeros_like(mask)), image)
    np.testing.assert_array_equal(fill(np.full_like(image, np.nan), np.ones_like(mask)), np.zeros_like(image))


def test_smoothing_is_refused():
    with pytest.raises(ValueError, match="sampling.smooth is True"):
        edit(None, None, [], [], LABELS, None, decode.SamplingSettings(smooth=True))
