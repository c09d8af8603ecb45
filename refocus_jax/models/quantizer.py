"""Vector quantization: the nearest code, and the one recurrence of the multi-scale quantizer (docs/method.md)."""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from refocus_jax.focus.resample import resize

PHI_RATIO = 0.5  # VAR's quant_resi: phi(h) = 0.5 h + 0.5 conv(h)


def nearest_code(vectors: jax.Array, codebook_vc: jax.Array) -> jax.Array:
    """Index of the nearest code (squared distance, first one on ties) of each vector (..., c): (...) int32.

    Float32 at the highest precision: TF32 or bfloat16 passes would change tokens.
    """
    product = jnp.einsum("...c,vc->...v", vectors.astype(jnp.float32), codebook_vc.astype(jnp.float32),
                         precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(jnp.square(codebook_vc.astype(jnp.float32)), axis=-1)
    return jnp.argmin(squares.reshape((1,) * (vectors.ndim - 1) + (-1,)) - 2 * product, axis=-1).astype(jnp.int32)


def phi_indices(num_scales: int, num_phi: int) -> tuple[int, ...]:
    """Which of the shared phi convolutions each scale uses: the nearest tick, first one on ties (float64, as VAR)."""
    if num_phi == 4:
        ticks = np.linspace(1 / 3 / num_phi, 1 - 1 / 3 / num_phi, num_phi)
    else:
        ticks = np.linspace(1 / 2 / num_phi, 1 - 1 / 2 / num_phi, num_phi)
    return tuple(int(np.argmin(np.abs(ticks - k / (num_scales - 1)))) for k in range(num_scales))


class Codebook(nn.Module):
    """`embedding` (vocab_size, latent_channels), float32."""

    vocab_size: int
    latent_channels: int

    def setup(self):
        # Stage 1 replaces all codes by latents of its first batch (training/codebook.py).
        self.embedding = self.param("embedding", nn.initializers.normal(1.0), (self.vocab_size, self.latent_channels))

    def nearest(self, vectors: jax.Array) -> jax.Array:
        return nearest_code(vectors, self.embedding)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.embedding[tokens]


class Quantized(NamedTuple):
    """Per scale, coarse to fine: token maps, what the nearest code was sought for, and the cumulative latent."""

    tokens: list[jax.Array]  # (b, p_k, p_k) int32
    inputs: list[jax.Array]  # (b, p_k, p_k, c)
    f_hats: list[jax.Array]  # (b, p_K, p_K, c)


class MultiScaleQuantizer(nn.Module):
    """With gamma = 1 for `residual` and 0 otherwise:

        r_k = nearest_code(z_k - gamma area(f_hat_{k-1}, p_k))
        f_hat_k = gamma f_hat_{k-1} + phi_k(bicubic(code[r_k], p_K))

    `num_phi` convolutions are shared among the scales; 0 makes phi the identity.
    """

    grid_sizes: Sequence[int]
    vocab_size: int
    latent_channels: int
    num_phi: int
    residual: bool

    def setup(self):
        self.codebook = Codebook(self.vocab_size, self.latent_channels)
        self.phi = [nn.Conv(self.latent_channels, (3, 3), precision=jax.lax.Precision.HIGHEST)
                    for _ in range(self.num_phi)]

    def accumulate(self, f_hat: jax.Array | None, vectors_bppc: jax.Array, scale: int) -> jax.Array:
        """The recurrence: f_hat of `scale` from the one before (None at the first) and the scale's code vectors."""
        h = resize(vectors_bppc, self.grid_sizes[-1], "bicubic")
        if self.num_phi:
            phi = self.phi[phi_indices(len(self.grid_sizes), self.num_phi)[scale]]
            h = (1 - PHI_RATIO) * h + PHI_RATIO * phi(h)
        return f_hat + h if self.residual and f_hat is not None else h

    def view(self, f_hat: jax.Array, scale: int) -> jax.Array:
        """The cumulative latent at the side of `scale`: what the generator reads, what is subtracted from z_k."""
        return resize(f_hat, self.grid_sizes[scale], "area")

    def choose(self, latent: jax.Array, f_hat: jax.Array | None, scale: int) -> tuple[jax.Array, jax.Array]:
        """r_k of a latent z_k (b, p_k, p_k, c) after f_hat, and what the nearest code was sought for; both are data."""
        target = jax.lax.stop_gradient(latent).astype(jnp.float32)
        if self.residual and f_hat is not None:
            target = target - jax.lax.stop_gradient(self.view(f_hat, scale))
        return self.codebook.nearest(target), target

    def quantize(self, latents: Sequence[jax.Array]) -> Quantized:
        """Encodes z_1 ... z_K, each (b, p_k, p_k, c), coarse to fine.

        Gradients reach codes and phi through f_hats; the latents that select codes are data (stop-gradient).
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
        """The cumulative latents of given token maps: of the first ones, if fewer than K are given."""
        result, f_hat = [], None
        for scale, token_map in enumerate(tokens):
            f_hat = self.accumulate(f_hat, self.codebook(token_map), scale)
            result.append(f_hat)
        return result

    def generator_inputs(self, tokens: Sequence[jax.Array]) -> jax.Array:
        """Teacher forcing: what the generator reads at scales 2 ... K given r_1 ... r_{K-1} (more are ignored).

        Returns (b, L - p_1^2, c), the cumulative latent before each scale at that scale's side, row by row.
        """
        f_hats = self.f_hats(tokens[:len(self.grid_sizes) - 1])
        views = [self.view(f_hat, scale + 1) for scale, f_hat in enumerate(f_hats)]
        return jnp.concatenate([v.reshape(v.shape[0], -1, v.shape[-1]) for v in views], axis=1)
