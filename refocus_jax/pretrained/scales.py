"""Samples and edits that appear scale by scale, for people who watch."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from refocus_jax.models.bound import Bound
from refocus_jax.pretrained.models import Generator, Labels
from refocus_jax.runtime import memory
from refocus_jax.sampling import decode, edit, filters
from refocus_jax.sampling.decode import SamplingSettings


class Stage(NamedTuple):
    """What is known after a scale.

    Attributes:
      scale: The scale, from 0.
      tokens: Its token map, (b, p, p) int32.
      images: The decoded view of the scale, (b, s, s, 3) in [-1, 1]; after the last scale, the images.
    """

    scale: int
    tokens: np.ndarray
    images: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleByScale:
    """Draws what `Generator.sample` and `Generator.edit` draw, up to rounding, one scale at a time.

    Each scale is a program of its own. It serves all values of guidance (except for the change from none to some),
    top-k and top-p, which `Generator.sample` compiles for. Smoothing is not available.

    Attributes:
      generator: The generator that draws.
    """

    generator: Generator

    @functools.cached_property
    def _begin(self):
        network = self.generator.network
        return memory.trimmed(jax.jit(
            lambda params, layers, labels, guided: decode.begin(Bound(network, params), labels, guided, layers),
            static_argnums=3))

    @functools.cached_property
    def _draw_scale(self):
        network, quantizer = self.generator.network, self.generator.tokenizer.model.structure.quantizer

        def run(params, layers, quantizer_params, course, keys, own, dials, scale, guided):
            strength, top_k, top_p = dials
            bound = Bound(quantizer, quantizer_params)
            return decode.draw_scale(
                Bound(network, params), bound, course, keys, scale, guided=guided, strength=strength,
                keep=functools.partial(filters.keep_likely, top_k=top_k, top_p=top_p),
                replace=edit.keep_own(bound, *own) if own else None, layers=layers)
        return memory.trimmed(jax.jit(run, static_argnums=(7, 8)))

    @functools.cached_property
    def _view(self):
        return memory.trimmed(jax.jit(self.generator.tokenizer.model.decode_view, static_argnums=2))

    @functools.cached_property
    def _own(self):
        return memory.trimmed(jax.jit(self.generator.tokenizer.own))

    def sample(self, labels: Labels, seed: int, settings: SamplingSettings) -> Iterator[Stage]:
        """Draws one sample per label; the arguments are those of `Generator.sample`."""
        return self._stages(self.generator.check_labels(labels), seed, settings, None)

    def edit(self, image_bhwc: ArrayLike, mask_bhw: ArrayLike, labels: Labels, seed: int,
             settings: SamplingSettings) -> Iterator[Stage]:
        """Paints the masked pixels of images; the arguments and errors are those of `Generator.edit`.

        Before the last scale, the stages show the whole images as their tokens describe them.
        """
        tokenizer, labels = self.generator.tokenizer, self.generator.check_labels(labels)
        image, mask = tokenizer.filled(image_bhwc, mask_bhw, len(labels))
        for stage in self._stages(labels, seed, settings, self._own(tokenizer.params, image, mask)):
            if stage.scale + 1 == len(tokenizer.model.grid_sizes):
                own = np.asarray(tokenizer.decode(tokenizer.encode(image)))
                stage = stage._replace(images=np.where(mask[..., None], stage.images, own))
            yield stage

    def _stages(self, labels: jax.Array, seed: int, settings: SamplingSettings, own: Any) -> Iterator[Stage]:
        generator, guided = self.generator, settings.cfg > 0
        if settings.smooth:
            raise ValueError("sampling.smooth is True, which is not drawn scale by scale; set it to False")
        keys, grids = decode.sample_keys(seed, labels), generator.network.grid_sizes
        limits = filters.limits(settings.top_k, settings.top_p, generator.network.vocab_size)
        course = self._begin(generator.params, generator.layers, labels, guided)
        for scale in range(len(grids)):
            dials = filters.guidance_scale(settings.cfg, scale, len(grids)), *limits
            course, tokens = self._draw_scale(generator.params, generator.layers, generator.quantizer_params, course,
                                              keys, own, dials, scale, guided)
            yield Stage(scale, np.asarray(tokens), self._images(course.f_hat, scale))

    def _images(self, f_hat: jax.Array, scale: int) -> np.ndarray:
        tokenizer = self.generator.tokenizer
        # A `var` pyramid decodes every scale at full size, by the same program.
        if tokenizer.model.structure.pyramid == "var" or scale + 1 == len(tokenizer.model.grid_sizes):
            return np.asarray(self.generator.images(decode.Sample([], [f_hat])))
        return np.asarray(self._view(tokenizer.params, f_hat, scale))
