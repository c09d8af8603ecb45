"""Vector quantization: the nearest code, and the recurrence of the multi-scale quantizer (docs/method.md)."""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from refocus_jax.focus.resample import resize

PHI_RATIO = 0.5  # `quant_resi` in VAR: phi(h) = 0.5 h + 0.5 conv(h)


def nearest_code(vectors: jax.Array, codebook_vc: jax.Array) -> jax.Array:
    """Finds the code nearest to each vector, by squared distance.

    The products run in float32 at the highest precision, because TF32 or bfloat16 would change tokens.

    Args:
      vectors: Vectors, (..., c).
      codebook_vc: The codes.

    Returns:
      The index of the nearest code, the first one on ties: (...) int32.
    """
    product = jnp.einsum("...c,vc->...v", vectors.astype(jnp.float32), codebook_vc.astype(jnp.float32),
                         precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(jnp.square(codebook_vc.astype(jnp.float32)), axis=-1)
    return jnp.argmin(squares.reshape((1,) * (vectors.ndim - 1) + (-1,)) - 2 * product, axis=-1).astype(jnp.int32)


def phi_indices(num_scales: int, num_phi: int) -> tuple[int, ...]:
    """Index of the shared phi convolution that each scale uses.

    It is that of the nearest tick, the first one on ties, in float64 as in VAR.
    """
    if num_phi == 4:
        ticks = np.linspace(1 / 3 / num_phi, 1 - 1 / 3 / num_phi, num_phi)
    else:
        ticks = np.linspace(1 / 2 / num_phi, 1 - 1 / 2 / num_phi, num_phi)
    return tuple(int(np.argmin(np.abs(ticks - k / (num_scales - 1)))) for k in range(num_scales))


class Codebook(nn.Module, kw_only=True):
    """The code vectors: a parameter `embedding` (vocab_size, latent_channels), float32.

    Attributes:
      vocab_size: Number of codes.
      latent_channels: Length of a code.
    """

    vocab_size: int
    latent_channels: int

    def setup(self):
        """Creates the codes. Stage 1 replaces all of them by latents of its first batch (training/codebook.py)."""
        self.embedding = self.param("embedding", nn.initializers.normal(1.0), (self.vocab_size, self.latent_channels))

    def nearest(self, vectors: jax.Array) -> jax.Array:
        """Index of the code nearest to each vector; see `nearest_code`."""
        return nearest_code(vectors, self.embedding)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Code vectors (..., latent_channels) of tokens (...)."""
        return self.embedding[tokens]


class Quantized(NamedTuple):
    """Result of a quantization, with one array for each scale, coarse to fine.

    Attributes:
      tokens: Token maps, (b, p_k, p_k) int32.
      inputs: Vectors for which the nearest code was sought, (b, p_k, p_k, c).
      f_hats: Cumulative latents after each scale, (b, p_K, p_K, c).
    """

    tokens: list[jax.Array]
    inputs: list[jax.Array]
    f_hats: list[jax.Array]


class MultiScaleQuantizer(nn.Module, kw_only=True):
    """Quantizer of K latents, coarse to fine, by one recurrence.

    With gamma = 1 if `residual` is set and 0 otherwise:

        r_k = nearest_code(z_k - gamma area(f_hat_{k-1}, p_k))
        f_hat_k = gamma f_hat_{k-1} + phi_k(bicubic(code[r_k], p_K))

    Attributes:
      grid_sizes: Sides p_k of the token maps, coarse to fine.
      vocab_size: Number of codes.
      latent_channels: Length of a code.
      num_phi: Number of convolutions phi, which the scales share; 0 makes phi the identity.
      residual: Whether each scale encodes what the coarser scales have left over.
    """

    grid_sizes: Sequence[int]
    vocab_size: int
    latent_channels: int
    num_phi: int
    residual: bool

    def setup(self):
        """Creates the codebook and the phi convolutions."""
        self.codebook = Codebook(vocab_size=self.vocab_size, latent_channels=self.latent_channels)
        self.phi = [nn.Conv(self.latent_channels, (3, 3), precision=jax.lax.Precision.HIGHEST)
                    for _ in range(self.num_phi)]

    def accumulate(self, f_hat: jax.Array | None, vectors_bppc: jax.Array, scale: int) -> jax.Array:
        """One step of the recurrence.

        Args:
          f_hat: Cumulative latent before this scale, None at the first scale.
          vectors_bppc: Code vectors of this scale.
          scale: Index of the scale, 0 for the coarsest.

        Returns:
          The cumulative latent after this scale, (b, p_K, p_K, c).
        """
        h = resize(vectors_bppc, self.grid_sizes[-1], "bicubic")
        if self.num_phi:
            phi = self.phi[phi_indices(len(self.grid_sizes), self.num_phi)[scale]]
            h = (1 - PHI_RATIO) * h + PHI_RATIO * phi(h)
        return f_hat + h if self.residual and f_hat is not None else h

    def view(self, f_hat: jax.Array, scale: int) -> jax.Array:
        """Resizes a cumulative latent to the side of `scale`.

        The generator reads the result, and the residual quantizer subtracts it from z_k.
        """
        return resize(f_hat, self.grid_sizes[scale], "area")

    def choose(self, latent: jax.Array, f_hat: jax.Array | None, scale: int) -> tuple[jax.Array, jax.Array]:
        """Chooses the tokens of one scale. No gradient flows through the result.

        Args:
          latent: z_k, (b, p_k, p_k, c).
          f_hat: Cumulative latent before this scale, None at the first scale.
          scale: Index of the scale, 0 for the coarsest.

        Returns:
          The tokens r_k, and the vectors for which the nearest code was sought.
        """
        target = jax.lax.stop_gradient(latent).astype(jnp.float32)
        if self.residual and f_hat is not None:
            target = target - jax.lax.stop_gradient(self.view(f_hat, scale))
        return self.codebook.nearest(target), target

    def quantize(self, latents: Sequence[jax.Array]) -> Quantized:
        """Quantizes z_1 ... z_K, each (b, p_k, p_k, c), coarse to fine.

        Gradients reach codes and phi through f_hats. None flow through the choice of codes (stop-gradient).
        """
        tokens, inputs, f_hats, f_hat = [], [], [], None
        for scale, latent in enumerate(latents):
            chosen, target = self.choose(latent, f_hat, scale)
            inputs.append(target)
            tokens.append(chosen)
            f_hat = self.accumulate(f_hat, self.codebook(tokens[-1]), scale)
            f_hats.append(f_hat)
        return Quantized(tokens, inputs, f_hats)

    def f_hats(self, tokens: Sequence[jax.Array]) -> list[jax.Array]:
        """Cumulative latents of the given token maps, which may be only the first of the K maps."""
        result, f_hat = [], None
        for scale, token_map in enumerate(tokens):
            f_hat = self.accumulate(f_hat, self.codebook(token_map), scale)
            result.append(f_hat)
        return result

    def generator_inputs(self, tokens: Sequence[jax.Array]) -> jax.Array:
        """Inputs of the generator at scales 2 ... K for teacher forcing.

        Args:
          tokens: Token maps r_1 ... r_{K-1}; further maps are ignored.

        Returns:
          The cumulative latent before each scale, resized to the side of that scale and flattened row by row:
          (b, L - p_1^2, c).
        """
        f_hats = self.f_hats(tokens[:len(self.grid_sizes) - 1])
        views = [self.view(f_hat, scale + 1) for scale, f_hat in enumerate(f_hats)]
        return jnp.concatenate([v.reshape(v.shape[0], -1, v.shape[-1]) for v in views], axis=1)
