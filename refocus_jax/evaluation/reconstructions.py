"""Measurements of a tokenizer on images: tokens, errors, and features of the reconstructions."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from refocus_jax.evaluation import measurements, metrics
from refocus_jax.judges.features import Extractor
from refocus_jax.models.attention import scale_offsets
from refocus_jax.models.tokenizer import DualTokenizer, flatten_tokens, to_unit_range
from refocus_jax.runtime import mesh as mesh_lib


def code_counts(tokens_nl: np.ndarray, model: DualTokenizer, stream: str) -> np.ndarray:
    """Count how often each code occurs at each scale.

    Args:
      tokens_nl: Flat token maps (n, L).
      model: The tokenizer.
      stream: "structure" or "alias".

    Returns:
      The counts (scales, V).
    """
    if stream == "structure":
        vocab_size, grid_sizes = model.structure.quantizer.vocab_size, model.grid_sizes
    else:
        assert model.alias is not None  # otherwise there are no alias tokens
        vocab_size, grid_sizes = model.alias.codebook.vocab_size, model.grid_sizes[:-1]
    return np.stack([np.bincount(tokens_nl[:, a:b].ravel(), minlength=vocab_size)
                     for a, b in itertools.pairwise(scale_offsets(grid_sizes))])


@dataclasses.dataclass(frozen=True)
class Reconstruct:
    """A function from images to tokens, errors and features of their reconstructions, on the extractor's devices.

    Attributes:
      tokenizer: The tokenizer.
      params: Its parameters.
      extractor: The network for the features.
    """

    tokenizer: DualTokenizer
    params: Any
    extractor: Extractor

    @functools.cached_property
    def _jitted(self):
        def run(params, image_uint8):
            image = to_unit_range(image_uint8)
            structure, alias = self.tokenizer.encode(params, image)
            decoded = self.tokenizer.decode(params, self.tokenizer.f_hats(params, structure)[-1])
            rounded = jnp.rint((decoded + 1) * 127.5).astype(jnp.uint8)
            decoded = to_unit_range(rounded)
            found = {"squared_error": jnp.square(decoded - image).mean(axis=(1, 2, 3)),
                     "structure": flatten_tokens(structure)}
            if alias:
                found["alias"] = flatten_tokens(alias)
            if image.shape[1] >= metrics.SSIM_WINDOW:
                found["ssim"] = metrics.ssim(decoded, image)
            return found, rounded

        mesh = self.extractor.mesh
        return jax.jit(mesh_lib.on_mesh(mesh, run), out_shardings=mesh_lib.replicated(mesh))

    def __call__(self, image_bhwc: np.ndarray) -> dict[str, jax.Array]:
        """Start to measure images, uint8 (b, h, w, 3); the arrays have b rows, and may not be there yet."""
        found, rounded = self._jitted(self.params, mesh_lib.put_whole(
            image_bhwc, mesh_lib.batch_sharding(self.extractor.mesh)))
        return found | measurements.columns(self.extractor.start(rounded))
