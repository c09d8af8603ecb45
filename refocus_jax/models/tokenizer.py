"""Structure and alias tokenizers: networks, and the pair of them as one function from images to token maps."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from refocus_jax.focus import Pyramid, View
from refocus_jax.focus.resample import resize
from refocus_jax.models.autoencoder import Decoder, Encoder, PatchAutoencoder
from refocus_jax.models.quantizer import Codebook, MultiScaleQuantizer, Quantized
from refocus_jax.models.randomness import fold_in

PYRAMIDS = ("focus", "var")


def to_unit_range(image_uint8: jax.Array) -> jax.Array:
    """uint8 to float32 in [-1, 1]."""
    return image_uint8.astype(jnp.float32) / 127.5 - 1


def flatten_tokens(tokens) -> jax.Array:
    """Token maps (b, p_k, p_k), coarse to fine, to (b, L)."""
    return jnp.concatenate([t.reshape(t.shape[0], -1) for t in tokens], axis=1)


class Autoencoder(nn.Module):
    """VAR's encoder and decoder with their two latent convolutions; fully convolutional, so every view fits.

    `remat`: what the backward pass computes again, one of `autoencoder.REMAT`: nothing, whole blocks, or all but their
    convolutions.
    """

    channels: int
    channel_multipliers: Sequence[int]
    num_residual_blocks: int
    latent_channels: int
    norm_groups: int
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        shape = (self.channels, tuple(self.channel_multipliers), self.num_residual_blocks)
        self.encoder = Encoder(*shape, self.latent_channels, self.norm_groups, self.dtype, self.remat)
        self.quant_conv = nn.Conv(self.latent_channels, (3, 3), dtype=self.dtype)
        self.post_quant_conv = nn.Conv(self.latent_channels, (3, 3), dtype=self.dtype)
        self.decoder = Decoder(*shape, 3, self.norm_groups, self.dtype, self.remat)

    @property
    def stride(self) -> int:
        return 2 ** (len(self.channel_multipliers) - 1)

    def encode(self, image_bhwc: jax.Array) -> jax.Array:
        """(b, h, w, 3) to float32 (b, h / stride, w / stride, latent_channels)."""
        return self.quant_conv(self.encoder(image_bhwc)).astype(jnp.float32)

    def features(self, latent_bhwc: jax.Array) -> jax.Array:
        """The decoder's activations before its last convolution."""
        return self.decoder.features(self.post_quant_conv(latent_bhwc))

    def head(self, features_bhwc: jax.Array) -> jax.Array:
        """The decoder's last convolution; the image is not clamped."""
        return self.decoder.head(features_bhwc)

    def decode(self, latent_bhwc: jax.Array) -> jax.Array:
        return self.head(self.features(latent_bhwc))


class StructureTokenizer(nn.Module):
    """Focus views to structure tokens r_k and back.

    `pyramid = 'focus'` encodes every view L_k with the one encoder; `'var'` pools the encoding of the image itself,
    z_k = area(E(x), p_k), which is VAR's tokenizer and always residual.
    """

    autoencoder: Autoencoder
    quantizer: MultiScaleQuantizer
    pyramid: str

    def latents(self, focused: Sequence[jax.Array]) -> list[jax.Array]:
        """z_1 ... z_K from the focused views; the last view is the image."""
        if self.pyramid == "var":
            latent = self.autoencoder.encode(focused[-1])
            return [resize(latent, p, "area") for p in self.quantizer.grid_sizes]
        return [self.autoencoder.encode(view) for view in focused]

    def quantize(self, latents: Sequence[jax.Array]) -> Quantized:
        return self.quantizer.quantize(latents)

    def encode(self, focused: Sequence[jax.Array]) -> list[jax.Array]:
        """Token maps r_k (b, p_k, p_k) int32."""
        return self.quantize(self.latents(focused)).tokens

    def decode(self, latent_bhwc: jax.Array) -> jax.Array:
        """Image of a cumulative latent of any side, clamped to [-1, 1]."""
        return jnp.clip(self.autoencoder.decode(latent_bhwc), -1, 1)

    def view(self, f_hat: jax.Array, scale: int) -> jax.Array:
        return self.quantizer.view(f_hat, scale)

    def f_hats(self, tokens: Sequence[jax.Array]) -> list[jax.Array]:
        return self.quantizer.f_hats(tokens)

    def __call__(self, focused: Sequence[jax.Array]) -> jax.Array:
        """Reconstruction of the image; touches every parameter, for initialization."""
        return self.decode(self.quantize(self.latents(focused)).f_hats[-1])


class AliasTokenizer(nn.Module):
    """Alias residuals (each divided by its scale's standard deviation) to alias tokens a_k, each scale on its own.

    The autoencoder is the structure tokenizer's own where both streams share one.
    """

    autoencoder: PatchAutoencoder | Autoencoder
    codebook: Codebook

    def latent(self, residual_bhwc: jax.Array) -> jax.Array:
        return self.autoencoder.encode(residual_bhwc)

    def nearest(self, latent_bhwc: jax.Array) -> jax.Array:
        return self.codebook.nearest(jax.lax.stop_gradient(latent_bhwc))

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Code vectors of tokens (...): (..., latent_channels)."""
        return self.codebook(tokens)

    def decode(self, latent_bhwc: jax.Array) -> jax.Array:
        """Normalized residual of a latent, not clamped."""
        return self.autoencoder.decode(latent_bhwc)

    def __call__(self, residual_bhwc: jax.Array) -> jax.Array:
        return self.decode(self.embed(self.nearest(self.latent(residual_bhwc))))


@dataclasses.dataclass(frozen=True)
class DualTokenizer:
    """Both tokenizers with the optics before them, as pure functions of a parameter tree.

    The tree is {"structure": ..., "alias": ..., "residual_std": (K - 1,)}. Without an alias stream (`alias` is None)
    it is {"structure": ...}; with one encoder and codebook for both streams (`shared`, Table 2), "alias" is absent and
    the alias tokenizer runs on the structure tokenizer's parameters.
    """

    optics: Pyramid
    structure: StructureTokenizer
    alias: AliasTokenizer | None
    shared: bool

    @property
    def grid_sizes(self) -> tuple[int, ...]:
        return self.optics.grid_sizes

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Parameters of both networks, without `residual_std`, which is measured while they train."""
        focused = [jnp.zeros((1, side, side, 3)) for side in (self.optics.stride * p for p in self.grid_sizes)]
        params = {"structure": self.structure.init(fold_in(key, "structure"), focused)["params"]}
        if self.alias is not None and not self.shared:
            params["alias"] = self.alias.init(fold_in(key, "alias"), focused[0])["params"]
        return params

    def alias_params(self, params) -> Any:
        """The alias tokenizer's own parameters, or the structure tokenizer's where they are shared."""
        if not self.shared:
            return params["alias"]
        structure = params["structure"]
        return {"autoencoder": structure["autoencoder"], "codebook": structure["quantizer"]["codebook"]}

    def residuals(self, views: Sequence[View]) -> list[jax.Array]:
        """A_k of all scales but the last, which holds nothing but noise."""
        return [view.residual for view in views[:-1]]

    def encode(self, params, image_bhwc: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        """Images (b, h, w, 3) in [-1, 1] to structure tokens r_1 ... r_K and alias tokens a_1 ... a_{K-1}.

        No noise. Each map is (b, p_k, p_k) int32; the second list is empty without an alias stream.
        """
        views = self.optics.views(image_bhwc)
        structure = self.structure.apply({"params": params["structure"]}, [v.focused for v in views],
                                         method="encode")
        if self.alias is None:
            return structure, []
        alias = []
        for scale, residual in enumerate(self.residuals(views)):
            latent = self.alias.apply({"params": self.alias_params(params)}, residual / params["residual_std"][scale],
                                      method="latent")
            alias.append(self.alias.apply({"params": self.alias_params(params)}, latent, method="nearest"))
        return structure, alias

    def f_hats(self, params, tokens: Sequence[jax.Array]) -> list[jax.Array]:
        """Cumulative latents of structure token maps."""
        return self.structure.apply({"params": params["structure"]}, tokens, method="f_hats")

    def decode(self, params, f_hat: jax.Array) -> jax.Array:
        """Image (b, h, w, 3) in [-1, 1] of the last cumulative latent."""
        return self.structure.apply({"params": params["structure"]}, f_hat, method="decode")

    def decode_view(self, params, f_hat: jax.Array, scale: int) -> jax.Array:
        """The focused view of `scale` as the tokens up to it tell it: (b, f p_k, f p_k, 3) in [-1, 1].

        A `var` pyramid's coarse latents are not trained to decode at their own side: there it is the whole image.
        """
        if self.structure.pyramid == "var":
            return self.decode(params, f_hat)
        return self.decode(params, self.structure.apply({"params": params["structure"]}, f_hat, scale, method="view"))
