"""Trained tokenizers and generators as objects with plain-array methods, for notebooks and later work.

    tokenizer = pretrained.load_tokenizer("runs/tiny")
    generator = pretrained.load_generator("runs/tiny")
    drawn = generator.sample([0, 1, 2], seed=0)
    images = tokenizer.decode(drawn.tokens)
"""

import dataclasses
import functools
import json
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from refocus_jax import experiment
from refocus_jax.models.tokenizer import DualTokenizer
from refocus_jax.models.transformer import Transformer
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.sampling import decode


def load_config(workdir: str) -> tuple[ConfigDict, tuple[str, ...]]:
    """The config that a workdir was made with, and the names of its classes.

    Raises:
      FileNotFoundError: no config.json there.
    """
    path = os.path.join(workdir, "config.json")
    if not os.path.exists(path):
        raise FileNotFoundError(f"{workdir} has no config.json: give the --workdir of a run that has started")
    with open(path) as file:
        values = json.load(file)
    return ConfigDict(values), tuple(values.pop("class_names"))


def _map_lists(value: Sequence[Any]) -> list[jax.Array]:
    return [jnp.asarray(v, jnp.int32) for v in value]


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A structure tokenizer with its optics. `model` and `params` also hold the alias stream, if there is one."""

    model: DualTokenizer
    params: Any

    @functools.cached_property
    def _encode(self):
        return jax.jit(lambda params, image: self.model.encode(params, image)[0])

    @functools.cached_property
    def _decode(self):
        def run(params, tokens):
            f_hat = self.model.f_hats(params, tokens)[-1]
            if len(tokens) == len(self.model.grid_sizes):
                return self.model.decode(params, f_hat)
            return self.model.decode_view(params, f_hat, len(tokens) - 1)
        return jax.jit(run)

    def encode(self, image_bhwc) -> list[jax.Array]:
        """Images (b, h, w, 3) in [-1, 1] to K token maps (b, p_k, p_k) int32, coarse to fine."""
        return self._encode(self.params, jnp.asarray(image_bhwc, jnp.float32))

    def decode(self, tokens: Sequence[Any], upto: int | None = None) -> jax.Array:
        """Images in [-1, 1] of K token maps.

        With `upto` = n < K only the first n maps speak: the result is the focused view of scale n, at its own side
        (the whole image for a `var` pyramid).

        Raises:
          ValueError: a wrong number of maps, or `upto` outside 1 ... K.
        """
        num_scales = len(self.model.grid_sizes)
        upto = num_scales if upto is None else upto
        if not 1 <= upto <= num_scales or not upto <= len(tokens) <= num_scales:
            raise ValueError(f"decode got {len(tokens)} token maps and upto={upto}; give {num_scales} maps and upto "
                             f"from 1 to {num_scales}")
        return self._decode(self.params, _map_lists(tokens[:upto]))


@dataclasses.dataclass(frozen=True)
class Generator:
    """A student with the quantizer it was trained on."""

    network: Transformer
    params: Any
    tokenizer: Tokenizer
    class_names: tuple[str, ...]

    @property
    def _quantizer_params(self):
        return self.tokenizer.params["structure"]["quantizer"]

    @functools.cached_property
    def _logits(self):
        quantizer = self.tokenizer.model.structure.quantizer

        def run(params, quantizer_params, tokens, labels):
            inputs = quantizer.apply({"params": quantizer_params}, tokens, method="generator_inputs")
            return self.network.apply({"params": params}, labels, inputs)[0]
        return jax.jit(run)

    @functools.cached_property
    def _sample(self):
        quantizer = self.tokenizer.model.structure.quantizer

        def run(params, quantizer_params, labels, keys, settings):
            return decode.sample(self.network, params, quantizer, quantizer_params, labels, keys, settings)
        return jax.jit(run, static_argnums=4)

    def _labels(self, labels) -> jax.Array:
        labels = np.asarray(labels)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or labels.size == 0:
            raise ValueError(f"labels are {labels!r}; give a list of class numbers")
        if labels.min() < 0 or labels.max() > self.network.num_classes:
            raise ValueError(f"labels range over {labels.min()} ... {labels.max()}; classes are 0 to "
                             f"{self.network.num_classes - 1}, and {self.network.num_classes} means none")
        return jnp.asarray(labels, jnp.int32)

    def logits(self, tokens: Sequence[Any], labels) -> jax.Array:
        """Teacher-forced logits of K token maps (b, p_k, p_k): (b, L, V) float32."""
        return self._logits(self.params, self._quantizer_params, _map_lists(tokens), self._labels(labels))

    def sample(self, labels, seed: int = 0, cfg: float = 1.5, top_k: int = 0, top_p: float = 0.96,
               smooth: bool = False) -> decode.Sample:
        """Draws one sample per label: an object with `.tokens` (K maps) and `.f_hat` (K cumulative latents).

        Sample i depends on seed + i and its label alone, not on the batch. Images: `tokenizer.decode(s.tokens)`; for
        smoothed samples, whose f_hat is no longer that of their tokens, `tokenizer.model.decode(params, s.f_hat[-1])`.
        """
        labels = self._labels(labels)
        settings = decode.SamplingSettings(cfg, top_k, top_p, smooth)
        return self._sample(self.params, self._quantizer_params, labels, decode.sample_keys(seed, labels), settings)


def load_tokenizer(workdir: str) -> Tokenizer:
    """The tokenizers of a workdir, from its latest checkpoint.

    Raises:
      FileNotFoundError: the workdir holds no config or no checkpoint of stage 1.
    """
    config, _ = load_config(workdir)
    params = experiment.load_tokenizer_params(config, config.tokenizer_from or workdir, mesh_lib.make_mesh())
    return Tokenizer(experiment.build_tokenizer(config), params)


def load_generator(workdir: str) -> Generator:
    """The student of a workdir, from its latest checkpoint.

    Raises:
      FileNotFoundError: the workdir holds no config or no checkpoint of stage 2.
    """
    config, class_names = load_config(workdir)
    params = experiment.load_generator_params(config, len(class_names), workdir, mesh_lib.make_mesh())
    return Generator(experiment.build_student(config, len(class_names)), params, load_tokenizer(workdir), class_names)
