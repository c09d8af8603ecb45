"""Trained tokenizers and generators as objects with plain-array methods, for notebooks and later work.

    tokenizer = pretrained.load_tokenizer("runs/tiny")
    generator = pretrained.load_generator("runs/tiny")
    images = generator.images(generator.sample([0, 1, 2], seed=0))

or, with the official VAR's files, `load_generator("var_d16.pth")`, with `vae_ch160v4096z32.pth` beside it.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from refocus_jax import build, encode, resume, validate, weights
from refocus_jax.focus import Pyramid
from refocus_jax.interop import var_state_dict
from refocus_jax.models.tokenizer import DualTokenizer
from refocus_jax.models.transformer import Transformer
from refocus_jax.reporting import runs
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime import weight_files
from refocus_jax.sampling import decode, edit

OFFICIAL_TOKENIZER = "vae_ch160v4096z32"  # the one that all official generators were trained on

# What of a workdir's config says how its networks are built.
_SETTINGS = ("class_names", *(name for name in validate.RANGES if name.partition(".")[0] in (
    "image_size", "grid_sizes", "focus", "tokenizer_from", "tokenizer", "alias", "generator", "teacher")))

# A workdir, an official file (.pth, .pt or .safetensors), or arrays by official name.
Source = str | os.PathLike | Mapping[str, Any]


def load_config(workdir: str) -> tuple[ConfigDict, tuple[str, ...]]:
    """The config that a workdir was made with, and the names of its classes.

    Raises:
      FileNotFoundError: no config.json there. ValueError: it is damaged, or lacks settings.
    """
    values = runs.read_config(workdir, _SETTINGS)
    class_names = tuple(values.pop("class_names"))
    values["generator"]["attention"] = "prefix"  # runs everywhere; the devices need not be those of the training
    return ConfigDict(values), class_names


def _map_lists(value: Sequence[Any]) -> list[jax.Array]:
    return [jnp.asarray(v, jnp.int32) for v in value]


def _settings(module: Any) -> dict[str, Any]:
    """What a module computes, as JSON: its fields and those of the modules in it."""
    def said(value):
        if dataclasses.is_dataclass(value):
            # The last two change how, and not what is computed.
            return {field.name: said(getattr(value, field.name)) for field in dataclasses.fields(value)
                    if field.name not in ("parent", "name", "remat", "attention")}
        return jnp.dtype(value).name if isinstance(value, type | np.dtype) else value

    return json.loads(json.dumps(said(module)))


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A structure tokenizer with its optics. `model` and `params` also hold the alias stream, if there is one."""

    model: DualTokenizer
    params: Any

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What tells it from all others, as JSON: settings, and digests of its parameters; they are taken once."""
        return {"settings": _settings(self.model), "params": encode.digests(self.params)}

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

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """As `Tokenizer.identity`; that of its tokenizer is a part of it."""
        return {"settings": _settings(self.network), "params": encode.digests({"student": self.params}),
                "tokenizer": self.tokenizer.identity}

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

        def run(params, layers, quantizer_params, labels, seed, start, settings):
            return decode.sample(self.network, params, quantizer, quantizer_params, labels,
                                 decode.sample_keys(seed, labels, start), settings, layers=layers)
        return jax.jit(run, static_argnums=6)

    @functools.cached_property
    def _layers(self):
        """Only a CPU gains by a second copy of the blocks."""
        return decode.unstack(self.params) if jax.default_backend() == "cpu" else None

    def _labels(self, labels) -> jax.Array:
        labels = np.asarray(labels)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or labels.size == 0:
            raise ValueError(f"labels are {labels!r}; give a list of class numbers")
        if labels.min() < 0 or labels.max() > self.network.num_classes:
            raise ValueError(f"labels range over {labels.min()} ... {labels.max()}; classes are 0 to "
                             f"{self.network.num_classes - 1}, and {self.network.num_classes} means none")
        return jnp.asarray(labels, jnp.int32)

    @functools.cached_property
    def _edit(self):
        optics, structure = self.tokenizer.model.optics, self.tokenizer.model.structure

        def run(params, layers, tokenizer_params, image, mask, labels, keys, settings):
            focused = [view.focused for view in optics.views(image)]
            latents = structure.apply({"params": tokenizer_params["structure"]}, focused, method="latents")
            return edit.edit(self.network, params, structure.quantizer, tokenizer_params["structure"]["quantizer"],
                             latents, edit.token_masks(mask, optics, structure.pyramid), labels, keys, settings,
                             layers=layers)
        return jax.jit(run, static_argnums=7)

    @functools.cached_property
    def _images(self):
        return jax.jit(self.tokenizer.model.decode, out_shardings=mesh_lib.replicated(mesh_lib.make_mesh()))

    def logits(self, tokens: Sequence[Any], labels) -> jax.Array:
        """Teacher-forced logits of K token maps (b, p_k, p_k): (b, L, V) float32."""
        return self._logits(self.params, self._quantizer_params, _map_lists(tokens), self._labels(labels))

    def sample(self, labels, seed: int = 0, cfg: float = 1.5, top_k: int = 0, top_p: float = 0.96,
               smooth: bool = False, start: int = 0) -> decode.Sample:
        """Draws one sample per label: an object with `.tokens` (K maps) and `.f_hat` (K cumulative latents).

        Each depends on the seed, its number and its label alone: labels in batches, with `start` the number of the
        first of each, give what all of them give at once. `images` decodes it. A batch that the devices can share is
        shared among them. Of several processes each must ask for the same samples, and holds those of its own devices.
        """
        settings = decode.SamplingSettings(cfg, top_k, top_p, smooth)
        return self._sample(self.params, self._layers, self._quantizer_params, self._shared(self._labels(labels)),
                            np.uint32(seed), np.uint32(start), settings)

    def edit(self, image_bhwc, mask_bhw, labels, seed: int = 0, cfg: float = 1.5, top_k: int = 0,
             top_p: float = 0.96) -> jax.Array:
        """Images with their masked pixels painted anew as the given classes, (b, h, w, 3) in [-1, 1].

        Pixels under the mask are unknown: whatever they are, NaN too, the result is the same to the last bit. Outside
        the mask it is exactly the tokenizer's own reconstruction of the image whose hole `edit.fill` has filled.

        Args:
          image_bhwc: in [-1, 1]. mask_bhw: of the same size, any shape; non-zero is painted anew. labels: one per
          image. seed and the others as for `sample`.

        Raises:
          ValueError: shapes or labels that do not fit, or known pixels outside [-1, 1].
        """
        labels = self._labels(labels)
        image, mask = np.asarray(image_bhwc, np.float32), np.asarray(mask_bhw) != 0
        size = self.tokenizer.model.optics.image_size
        if image.shape != (len(labels), size, size, 3) or mask.shape != image.shape[:3]:
            raise ValueError(f"image and mask have shapes {image.shape} and {mask.shape} with {len(labels)} labels; "
                             f"give ({len(labels)}, {size}, {size}, 3) and ({len(labels)}, {size}, {size})")
        image = np.stack([edit.fill(*one) for one in zip(image, mask, strict=True)])
        if not (np.abs(image) <= 1).all():
            raise ValueError(f"image ranges over {image.min():.4g} ... {image.max():.4g} outside the mask; give "
                             "numbers in [-1, 1]")
        drawn = self._edit(self.params, self._layers, self.tokenizer.params, image, mask, labels,
                           decode.sample_keys(seed, labels), decode.SamplingSettings(cfg, top_k, top_p))
        own = self.tokenizer.decode(self.tokenizer.encode(image))
        return jnp.where(mask[..., None], self.images(drawn), own)

    def images(self, drawn: decode.Sample) -> jax.Array:
        """What was drawn, smoothed or not, as images (b, h, w, 3) in [-1, 1]; every process gets all of them."""
        return self._images(self.tokenizer.params, drawn.f_hat[-1])

    def _shared(self, array: np.ndarray) -> jax.Array:
        mesh = mesh_lib.make_mesh()
        sharding = mesh_lib.batch_sharding if len(array) % mesh.size == 0 else mesh_lib.replicated
        return mesh_lib.put_whole(array, sharding(mesh))


def _official_arrays(source: Source, fits: weight_files.Fits) -> Mapping[str, Any] | None:
    """The arrays of an official source; None for a workdir."""
    if isinstance(source, Mapping):
        return source
    return weight_files.read(source, fits) if weight_files.is_weight_file(source) else None


def _expanded(source: Source) -> Source:
    return source if isinstance(source, Mapping) else os.path.expanduser(source)


def _replicated(params: Any) -> Any:
    return jax.device_put(params, mesh_lib.replicated(mesh_lib.make_mesh()))


def _refuse(source: Source, **arguments: Any) -> None:
    given = [name for name, value in arguments.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)} given for {source}, whose config says them already; leave them out")


def load_tokenizer(source: Source, *, grid_sizes: Sequence[int] | None = None,
                   norm_groups: int | None = None) -> Tokenizer:
    """The tokenizers of a workdir, from its latest checkpoint, or VAR's from an official source.

    Args:
      source: a workdir, a file (`vae_ch160v4096z32.pth`, `.safetensors` with the same names, shards, or an entry of a
      training state: `FILE#trainer.vae_local`), or the arrays.
      grid_sizes, norm_groups: what no array of an official source reveals; default VAR's ten scales and 32 groups.

    Raises:
      FileNotFoundError: no such file, or a workdir without config or checkpoint of stage 1.
      ValueError: a damaged file; arrays that are missing, unknown or of a wrong shape, all of them listed.
    """
    source = _expanded(source)
    arrays = _official_arrays(source, var_state_dict.is_tokenizer)
    if arrays is None:
        _refuse(source, grid_sizes=grid_sizes, norm_groups=norm_groups)
        config, _ = load_config(source)
        params = weights.load_tokenizer(config, config.tokenizer_from or source, mesh_lib.make_mesh())
        return Tokenizer(build.tokenizer(config), params)
    structure, params = var_state_dict.import_tokenizer(arrays, grid_sizes,
                                                        norm_groups or var_state_dict.OFFICIAL_NORM_GROUPS)
    # VAR has no focus: all its scales come from the one encoding of the image itself.
    optics = Pyramid(structure.quantizer.grid_sizes, structure.autoencoder.stride, rho_max=1.0, psf="none")
    return Tokenizer(DualTokenizer(optics, structure, None, False), _replicated({"structure": params}))


def _official_tokenizer(source: Source, tokenizer: Tokenizer | Source | None, grid_sizes) -> Tokenizer:
    """The tokenizer that an official generator needs: what was given, or the official file beside the generator's."""
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    if tokenizer is None:
        beside = [] if isinstance(source, Mapping) else [
            Path(source).with_name(OFFICIAL_TOKENIZER + suffix) for suffix in weight_files.SUFFIXES]
        tokenizer = next((path for path in beside if path.exists()), None)
    if tokenizer is None:
        raise FileNotFoundError(f"an official generator needs its tokenizer: put {OFFICIAL_TOKENIZER}.pth beside it, "
                                "or give tokenizer=, a file, arrays or what load_tokenizer returns")
    official = isinstance(tokenizer, Mapping) or weight_files.is_weight_file(tokenizer)
    return load_tokenizer(tokenizer, grid_sizes=grid_sizes if official else None)


def load_generator(source: Source, *, tokenizer: Tokenizer | Source | None = None,
                   grid_sizes: Sequence[int] | None = None, num_heads: int | None = None) -> Generator:
    """The student of a workdir, from its latest checkpoint, or a VAR from an official source.

    Args:
      source: a workdir, a file (`var_d16.pth` ... `var_d36.pth`, `.safetensors` with the same names, shards, or a
      training state, of which the entry that fits is taken, or named: `FILE#trainer.var_wo_ddp`), or the arrays.
      tokenizer: of an official generator; default the official file in the same folder.
      grid_sizes, num_heads: what the arrays of an official source may not reveal; default VAR's.

    Raises:
      FileNotFoundError: no such file, or a workdir without config or checkpoint of stage 2.
      ValueError: as for `load_tokenizer`; or generator and tokenizer do not fit each other, or have not been trained
      together.
    """
    source = _expanded(source)
    arrays = _official_arrays(source, var_state_dict.is_transformer)
    if arrays is None:
        _refuse(source, tokenizer=tokenizer, grid_sizes=grid_sizes, num_heads=num_heads)
        config, class_names = load_config(source)
        params = weights.load_student(config, len(class_names), source, mesh_lib.make_mesh())
        tokenizer = load_tokenizer(source)
        resume.check_tokenizers(source, encode.digests(tokenizer.params), config.tokenizer_from)
        return Generator(build.student(config, len(class_names)), params, tokenizer, class_names)
    network, params = var_state_dict.import_transformer(arrays, grid_sizes, num_heads)
    tokenizer = _official_tokenizer(source, tokenizer, network.grid_sizes)
    quantizer = tokenizer.model.structure.quantizer
    for name in ("grid_sizes", "vocab_size", "latent_channels"):
        if getattr(network, name) != getattr(quantizer, name):
            raise ValueError(f"{name} is {getattr(network, name)} in the generator and {getattr(quantizer, name)} in "
                             "the tokenizer; give the tokenizer that it was trained on")
    return Generator(network, _replicated(params), tokenizer, tuple(map(str, range(network.num_classes))))
