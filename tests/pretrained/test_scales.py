"""Samples and edits that appear scale by scale are those that are drawn at once."""

import dataclasses

import jax
import numpy as np
import pytest

from refocus_jax.pretrained.scales import ScaleByScale
from refocus_jax.sampling.decode import SamplingSettings
from tests.fixtures import small

LABELS = [1, 3]


@pytest.fixture(scope="module", params=["focus", "var"])
def steps(request):
    """VAR behind a focus pyramid, and M-VAR behind VAR's."""
    generator = small.generator(pyramid=request.param, residual=request.param == "var", alias=False)
    if request.param == "var":
        network = small.transformer(architecture="mvar")
        generator = dataclasses.replace(generator, network=network, params=jax.device_put(
            small.transformer_params(network)))
    return ScaleByScale(generator=generator)


def test_samples_appear_scale_by_scale(steps):
    generator, settings = steps.generator, SamplingSettings(cfg=1.5, top_k=20, top_p=0.9)
    whole = generator.sample(LABELS, 3, settings)
    stages = list(steps.sample(LABELS, 3, settings))
    assert [stage.scale for stage in stages] == [0, 1, 2]
    for stage, tokens in zip(stages, whole.tokens, strict=True):
        np.testing.assert_array_equal(stage.tokens, tokens)
        expected = generator.tokenizer.decode(whole.tokens, upto=stage.scale + 1)
        np.testing.assert_allclose(stage.images, expected, atol=1e-4)
    np.testing.assert_allclose(stages[-1].images, generator.images(whole), atol=1e-4)


def test_other_settings_need_no_other_programs(steps):
    list(steps.sample(LABELS, 0, SamplingSettings(cfg=1.0, top_k=10, top_p=0.9)))
    programs, images = steps._draw_scale.__wrapped__._cache_size(), []
    for settings in (SamplingSettings(cfg=3.0, top_k=0, top_p=0.3), SamplingSettings(cfg=0.5, top_k=3, top_p=0.0)):
        images.append(list(steps.sample(LABELS, 0, settings))[-1].images)
        np.testing.assert_allclose(images[-1], steps.generator.images(steps.generator.sample(LABELS, 0, settings)),
                                   atol=1e-4)
    assert steps._draw_scale.__wrapped__._cache_size() == programs
    assert np.abs(images[0] - images[1]).max() > 0.01


def test_without_guidance(steps):
    settings = SamplingSettings(cfg=0.0, top_k=0, top_p=0.0)
    for stage, tokens in zip(steps.sample(LABELS, 1, settings), steps.generator.sample(LABELS, 1, settings).tokens,
                             strict=True):
        np.testing.assert_array_equal(stage.tokens, tokens)


def test_edits_appear_scale_by_scale(steps):
    size = small.IMAGE_SIZE
    image = np.random.default_rng(0).uniform(-1, 1, (2, size, size, 3))
    mask = np.zeros((2, size, size), bool)
    mask[:, 2:5, 1:4] = True
    settings = SamplingSettings(cfg=1.0, top_k=10, top_p=0.9)
    stages = list(steps.edit(image, mask, LABELS, 4, settings))
    assert len(stages) == 3
    np.testing.assert_allclose(stages[-1].images, steps.generator.edit(image, mask, LABELS, 4, settings), atol=1e-4)
    hidden = np.where(mask[..., None], np.nan, image)
    for stage, other in zip(stages, steps.edit(hidden, mask, LABELS, 4, settings), strict=True):
        np.testing.assert_array_equal(stage.images, other.images)


def test_smoothing_is_refused(steps):
    with pytest.raises(ValueError, match="sampling.smooth is True.*set it to False"):
        next(steps.sample(LABELS, 0, SamplingSettings(smooth=True)))
