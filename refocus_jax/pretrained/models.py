"""Trained tokenizers and generators as objects whose methods take and return plain arrays."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from refocus_jax.models.bound import Bound
from refocus_jax.models.tokenizer import DualTokenizer
from refocus_jax.models.transformer import Transformer
from refocus_jax.runtime import memory
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime.digests import digests
from refocus_jax.sampling import decode, edit
from refocus_jax.sampling.decode import SamplingSettings

Labels = ArrayLike | Sequence[int]  # one class number per image


def _map_lists(value: Sequence[Any]) -> list[jax.Array]:
    return [jnp.asarray(v, jnp.int32) for v in value]


def _settings(module: Any) -> dict[str, Any]:
    """Returns all that the results of a module depend on, as JSON: its fields and those of its submodules."""
    def said(value):
        if dataclasses.is_dataclass(value):
            # The last two change how something is computed, but not the result. VAR's architecture is not said, so that
            # what was made with a VAR before there was another stays valid.
            return {field.name: said(getattr(value, field.name)) for field in dataclasses.fields(value)
                    if field.name not in ("parent", "name", "remat", "attention")
                    and (field.name, getattr(value, field.name)) != ("architecture", "var")}
        return jnp.dtype(value).name if isinstance(value, type | np.dtype) else value

    return json.loads(json.dumps(said(module)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A structure tokenizer with its optics.

    Attributes:
      model: The networks, with the alias tokenizer if there is one.
      params: Their parameters.
      step: The step of its checkpoint; None if it does not come from a workdir.
    """

    model: DualTokenizer
    params: Any
    step: int | None = None

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What distinguishes this tokenizer from others, as JSON: settings and digests of its parameters."""
        return {"settings": _settings(self.model), "params": self.digests}

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """Digests of each part of the parameters, see `runtime.digests`."""
        return digests(self.params)

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

    def encode(self, image_bhwc: ArrayLike) -> list[jax.Array]:
        """Encodes images (b, h, w, 3) in [-1, 1] as K token maps (b, p_k, p_k) int32, coarse to fine."""
        return self._encode(self.params, jnp.asarray(image_bhwc, jnp.float32))

    def decode(self, tokens: Sequence[Any], upto: int | None = None) -> jax.Array:
        """Decodes K token maps to images in [-1, 1].

        Args:
          tokens: The token maps, coarse to fine.
          upto: Uses only the first n of the maps. For n < K the result is then the focused view of scale n, in its own
            size (for a `var` pyramid: in the size of the image). Default all.

        Raises:
          ValueError: The number of maps is wrong, or `upto` is not in 1 ... K.
        """
        num_scales = len(self.model.grid_sizes)
        upto = num_scales if upto is None else upto
        if not 1 <= upto <= num_scales or not upto <= len(tokens) <= num_scales:
            raise ValueError(f"decode got {len(tokens)} token maps and upto={upto}; give {num_scales} maps and upto "
                             f"from 1 to {num_scales}")
        return self._decode(self.params, _map_lists(tokens[:upto]))

    def filled(self, image_bhwc: ArrayLike, mask_bhw: ArrayLike, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Fills the masked parts of images to edit, as `edit.fill` does.

        Returns:
          The images (count, h, w, 3), and the masks (count, h, w) bool.

        Raises:
          ValueError: As for `Generator.edit`.
        """
        image, mask = np.asarray(image_bhwc, np.float32), np.asarray(mask_bhw) != 0
        size = self.model.optics.image_size
        if image.shape != (count, size, size, 3) or mask.shape != image.shape[:3]:
            raise ValueError(f"image and mask have shapes {image.shape} and {mask.shape} with {count} labels; give "
                             f"({count}, {size}, {size}, 3) and ({count}, {size}, {size})")
        image = np.stack([edit.fill(*one) for one in zip(image, mask, strict=True)])
        if not (np.abs(image) <= 1).all():
            raise ValueError(f"image ranges over {image.min():.4g} ... {image.max():.4g} outside the mask; give "
                             "numbers in [-1, 1]")
        return image, mask

    def own(self, params: Any, image_bhwc: jax.Array, mask_bhw: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        """Returns what `edit.edit` needs of `filled` images: their latents, and which tokens are drawn."""
        optics, structure = self.model.optics, self.model.structure
        focused = [view.focused for view in optics.views(image_bhwc)]
        latents = Bound(structure, params["structure"])("latents", focused)
        return latents, edit.token_masks(mask_bhw, optics, structure.pyramid)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generator:
    """A student with the tokenizer that it was trained on.

    Attributes:
      network: The transformer.
      params: Its parameters.
      tokenizer: The tokenizer that decodes its tokens.
      class_names: The names of its classes.
      step: The step of its checkpoint; None if it does not come from a workdir.
    """

    network: Transformer
    params: Any
    tokenizer: Tokenizer
    class_names: tuple[str, ...]
    step: int | None = None

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What distinguishes this generator from others, as `Tokenizer.identity`; includes that of its tokenizer."""
        return {"settings": _settings(self.network), "params": digests({"student": self.params}),
                "tokenizer": self.tokenizer.identity}

    @property
    def quantizer_params(self) -> Any:
        """The parameters of the structure tokenizer's quantizer."""
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
            return decode.sample(Bound(self.network, params), Bound(quantizer, quantizer_params), labels,
                                 decode.sample_keys(seed, labels, start), settings, layers=layers)
        return memory.trimmed(jax.jit(run, static_argnums=6))

    @functools.cached_property
    def layers(self) -> tuple[Any, ...] | None:
        """The blocks once more, unstacked, in the same memory; only on CPUs, where it makes sampling faster."""
        return decode.unstack(self.params) if jax.default_backend() == "cpu" else None

    def check_labels(self, labels: Labels) -> jax.Array:
        """Returns labels as an array (b,) int32; a ValueError says which are none."""
        labels = np.asarray(labels)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or labels.size == 0:
            raise ValueError(f"labels are {labels!r}; give a list of class numbers")
        if labels.min() < 0 or labels.max() > self.network.num_classes:
            raise ValueError(f"labels range over {labels.min()} ... {labels.max()}; classes are 0 to "
                             f"{self.network.num_classes - 1}, and {self.network.num_classes} means none")
        return jnp.asarray(labels, jnp.int32)

    @functools.cached_property
    def _edit(self):
        def run(params, layers, tokenizer_params, image, mask, labels, keys, settings):
            quantizer = Bound(self.tokenizer.model.structure.quantizer, tokenizer_params["structure"]["quantizer"])
            return edit.edit(Bound(self.network, params), quantizer, *self.tokenizer.own(tokenizer_params, image, mask),
                             labels, keys, settings, layers=layers)
        return memory.trimmed(jax.jit(run, static_argnums=7))

    @functools.cached_property
    def _images(self):
        return jax.jit(self.tokenizer.model.decode, out_shardings=mesh_lib.replicated(mesh_lib.make_mesh()))

    def logits(self, tokens: Sequence[Any], labels: Labels) -> jax.Array:
        """Computes the teacher-forced logits of K token maps (b, p_k, p_k): (b, L, V) float32."""
        return self._logits(self.params, self.quantizer_params, _map_lists(tokens), self.check_labels(labels))

    def sample(self, labels: Labels, seed: int = 0, settings: SamplingSettings = SamplingSettings(), *,
               start: int = 0) -> decode.Sample:
        """Draws one sample per label; `images` decodes them.

        A sample depends only on the seed, its number and its label. So labels in several batches, with `start` the
        number of the first sample of each batch, give the same samples as all of them in one call. A batch is divided
        among the devices if its size permits. If there are several processes, all must ask for the same samples, and
        each holds those of its own devices.

        Args:
          labels: One class number per sample; the number of classes itself means no class.
          seed: The seed of all samples.
          settings: How they are drawn.
          start: The number of the first sample.

        Returns:
          The samples, with `.tokens` (K maps) and `.f_hat` (K cumulative latents).
        """
        return self._sample(self.params, self.layers, self.quantizer_params, self._shared(self.check_labels(labels)),
                            np.uint32(seed), np.uint32(start), settings)

    def edit(self, image_bhwc: ArrayLike, mask_bhw: ArrayLike, labels: Labels, seed: int = 0,
             settings: SamplingSettings = SamplingSettings()) -> jax.Array:
        """Paints the masked pixels of images as the given classes.

        The result does not depend on the pixels under the mask, which may be NaN. Outside the mask it is exactly the
        tokenizer's reconstruction of the image after `edit.fill` has filled the masked part.

        Args:
          image_bhwc: Images (b, h, w, 3) in [-1, 1].
          mask_bhw: Masks (b, h, w); pixels where they are not zero are painted, a region of any shape.
          labels: One class number per image.
          seed: The seed, as for `sample`.
          settings: How tokens are drawn, as for `sample`.

        Returns:
          The painted images (b, h, w, 3) in [-1, 1].

        Raises:
          ValueError: Shapes or labels do not fit, or known pixels are outside [-1, 1].
        """
        labels = self.check_labels(labels)
        image, mask = self.tokenizer.filled(image_bhwc, mask_bhw, len(labels))
        drawn = self._edit(self.params, self.layers, self.tokenizer.params, image, mask, labels,
                           decode.sample_keys(seed, labels), settings)
        return jnp.where(mask[..., None], self.images(drawn), self.tokenizer.decode(self.tokenizer.encode(image)))

    def images(self, drawn: decode.Sample) -> jax.Array:
        """Decodes samples to images (b, h, w, 3) in [-1, 1]; every process gets all of them."""
        return self._images(self.tokenizer.params, drawn.f_hat[-1])

    def _shared(self, array: jax.Array) -> jax.Array:
        mesh = mesh_lib.make_mesh()
        sharding = mesh_lib.batch_sharding if len(array) % mesh.size == 0 else mesh_lib.replicated
        return mesh_lib.put_whole(array, sharding(mesh))
