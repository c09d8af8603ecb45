"""Structure and alias tokenizers: the networks, and the pair of them as one function from images to token maps."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from refocus_jax.focus import Pyramid, View
from refocus_jax.focus.resample import resize
from refocus_jax.models.autoencoder import Decoder, Encoder, PatchAutoencoder
from refocus_jax.models.bound import Bound
from refocus_jax.models.canvas import Canvas, clear
from refocus_jax.models.quantizer import Codebook, MultiScaleQuantizer, Quantized
from refocus_jax.models.randomness import fold_in

PYRAMIDS = ("focus", "var")


def to_unit_range(image_uint8: jax.Array) -> jax.Array:
    """Converts uint8 images to float32 in [-1, 1]."""
    return image_uint8.astype(jnp.float32) / 127.5 - 1


def flatten_tokens(tokens) -> jax.Array:
    """Flattens token maps (b, p_k, p_k), coarse to fine, to one sequence (b, L)."""
    return jnp.concatenate([t.reshape(t.shape[0], -1) for t in tokens], axis=1)


class Autoencoder(nn.Module, kw_only=True):
    """VAR's encoder and decoder with their two latent convolutions.

    It is fully convolutional, so it works on views of every size.

    Attributes:
      channels: Channels before multiplication.
      channel_multipliers: Factor on the channels of each level, from the largest side to the smallest.
      num_residual_blocks: Residual blocks per level of the encoder; the decoder has one more.
      latent_channels: Channels of the latent.
      norm_groups: Groups of each GroupNorm.
      dtype: Compute dtype.
      remat: What the backward pass computes again, one of `autoencoder.REMAT`: nothing, whole blocks, or everything in
        them except the convolutions.
    """

    channels: int
    channel_multipliers: Sequence[int]
    num_residual_blocks: int
    latent_channels: int
    norm_groups: int
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        """Creates the encoder, the decoder and the latent convolutions."""
        both = dict(
            channels=self.channels, channel_multipliers=tuple(self.channel_multipliers),
            num_residual_blocks=self.num_residual_blocks, groups=self.norm_groups, dtype=self.dtype, remat=self.remat)
        self.encoder = Encoder(latent_channels=self.latent_channels, **both)
        self.quant_conv = nn.Conv(self.latent_channels, (3, 3), dtype=self.dtype)
        self.post_quant_conv = nn.Conv(self.latent_channels, (3, 3), dtype=self.dtype)
        self.decoder = Decoder(image_channels=3, **both)

    @property
    def stride(self) -> int:
        """Ratio of the side of the image to the side of the latent."""
        return 2 ** (len(self.channel_multipliers) - 1)

    def encode(self, image_bhwc: jax.Array, canvas: Canvas | None = None) -> jax.Array:
        """Maps images (b, h, w, 3) to float32 latents (b, h / stride, w / stride, latent_channels)."""
        return self.quant_conv(clear(self.encoder(image_bhwc, canvas), canvas)).astype(jnp.float32)

    def features(self, latent_bhwc: jax.Array, canvas: Canvas | None = None) -> jax.Array:
        """Activations of the decoder before its last convolution."""
        return self.decoder.features(clear(self.post_quant_conv(latent_bhwc), canvas), canvas)

    def head(self, features_bhwc: jax.Array) -> jax.Array:
        """Applies the last convolution of the decoder; the image is not clamped."""
        return self.decoder.head(features_bhwc)

    def decode(self, latent_bhwc: jax.Array, canvas: Canvas | None = None) -> jax.Array:
        """Maps latents to float32 images, not clamped: the inverse shapes of `encode`."""
        return self.head(self.features(latent_bhwc, canvas))


def encode_views(autoencoder: Autoencoder | PatchAutoencoder, views: Sequence[jax.Array]) -> list[jax.Array]:
    """Encodes square views of several sides, all at once on one canvas."""
    canvas = Canvas(tuple(view.shape[1] // autoencoder.stride for view in views))
    return canvas.take(autoencoder.encode(canvas.put(views), canvas))


def decode_views(autoencoder: Autoencoder | PatchAutoencoder, latents: Sequence[jax.Array]) -> list[jax.Array]:
    """Decodes square latents of several sides, all at once on one canvas; the images are not clamped."""
    canvas = Canvas(tuple(latent.shape[1] for latent in latents))
    return canvas.take(autoencoder.decode(canvas.put(latents), canvas))


class StructureTokenizer(nn.Module, kw_only=True):
    """Tokenizer from focus views to structure tokens r_k and back.

    Attributes:
      autoencoder: The network between images and latents.
      quantizer: The quantizer between latents and tokens.
      pyramid: 'focus' encodes every view L_k with the same encoder. 'var' pools the encoding of the image itself,
        z_k = area(E(x), p_k); that is VAR's tokenizer, which is always residual.
    """

    autoencoder: Autoencoder
    quantizer: MultiScaleQuantizer
    pyramid: str

    def latents(self, focused: Sequence[jax.Array]) -> list[jax.Array]:
        """Latents z_1 ... z_K of the focused views, of which the last is the image."""
        if self.pyramid == "var":
            latent = self.autoencoder.encode(focused[-1])
            return [resize(latent, p, "area") for p in self.quantizer.grid_sizes]
        # The image is by far the largest view: with it on the canvas, the canvas would be half empty.
        return [*encode_views(self.autoencoder, focused[:-1]), self.autoencoder.encode(focused[-1])]

    def quantize(self, latents: Sequence[jax.Array]) -> Quantized:
        """Quantizes latents z_1 ... z_K; see `MultiScaleQuantizer.quantize`."""
        return self.quantizer.quantize(latents)

    def encode(self, focused: Sequence[jax.Array]) -> list[jax.Array]:
        """Token maps r_k of the focused views, (b, p_k, p_k) int32."""
        return self.quantize(self.latents(focused)).tokens

    def decode(self, latent_bhwc: jax.Array) -> jax.Array:
        """Decodes a cumulative latent of any side to an image, clamped to [-1, 1]."""
        return jnp.clip(self.autoencoder.decode(latent_bhwc), -1, 1)

    def decode_views(self, latents: Sequence[jax.Array]) -> list[jax.Array]:
        """Decodes latents of several sides to images, not clamped."""
        return decode_views(self.autoencoder, latents)

    def view(self, f_hat: jax.Array, scale: int) -> jax.Array:
        """Resizes a cumulative latent to the side of `scale`; see `MultiScaleQuantizer.view`."""
        return self.quantizer.view(f_hat, scale)

    def f_hats(self, tokens: Sequence[jax.Array]) -> list[jax.Array]:
        """Cumulative latents of token maps; see `MultiScaleQuantizer.f_hats`."""
        return self.quantizer.f_hats(tokens)

    def __call__(self, focused: Sequence[jax.Array]) -> jax.Array:
        """Reconstructs the image; uses every parameter, for initialization."""
        return self.decode(self.quantize(self.latents(focused)).f_hats[-1])


class AliasTokenizer(nn.Module, kw_only=True):
    """Tokenizer from alias residuals to alias tokens a_k, each scale on its own.

    The residuals of each scale must be divided by their standard deviation.

    Attributes:
      autoencoder: The network between residuals and latents: the structure tokenizer's `Autoencoder` if both streams
        share one.
      codebook: The codes of the alias tokens.
    """

    autoencoder: PatchAutoencoder | Autoencoder
    codebook: Codebook

    def latents(self, residuals: Sequence[jax.Array]) -> list[jax.Array]:
        """Latents of the normalized residuals of several scales."""
        return encode_views(self.autoencoder, residuals)

    def nearest(self, latent_bhwc: jax.Array) -> jax.Array:
        """Tokens nearest to a latent. No gradient flows through the choice."""
        return self.codebook.nearest(jax.lax.stop_gradient(latent_bhwc))

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Code vectors (..., latent_channels) of tokens (...)."""
        return self.codebook(tokens)

    def decode(self, latents: Sequence[jax.Array]) -> list[jax.Array]:
        """Decodes the latents of several scales to normalized residuals, not clamped."""
        return decode_views(self.autoencoder, latents)

    def __call__(self, residual_bhwc: jax.Array) -> jax.Array:
        """Reconstructs a normalized residual; uses every parameter, for initialization."""
        return self.decode([self.embed(self.nearest(latent)) for latent in self.latents([residual_bhwc])])[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DualTokenizer:
    """Both tokenizers and the optics before them, as pure functions of a parameter tree.

    The tree is {"structure": ..., "alias": ..., "residual_std": (K - 1,)}. Without an alias stream it is
    {"structure": ...}. If both streams share one encoder and codebook (Table 2), "alias" is absent and the alias
    tokenizer uses the parameters of the structure tokenizer.

    Attributes:
      optics: Makes the views of an image.
      structure: The structure tokenizer.
      alias: The alias tokenizer, or None without an alias stream.
      shared: Whether both streams share one encoder and codebook.
    """

    optics: Pyramid
    structure: StructureTokenizer
    alias: AliasTokenizer | None
    shared: bool

    @property
    def grid_sizes(self) -> tuple[int, ...]:
        """Sides of the token maps, coarse to fine."""
        return self.optics.grid_sizes

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Initializes the parameters of both networks, without `residual_std`, which training measures."""
        focused = [jnp.zeros((1, side, side, 3)) for side in (self.optics.stride * p for p in self.grid_sizes)]
        params = {"structure": self.structure.init(fold_in(key, "structure"), focused)["params"]}
        if self.alias is not None and not self.shared:
            params["alias"] = self.alias.init(fold_in(key, "alias"), focused[0])["params"]
        return params

    def alias_params(self, params) -> Any:
        """Parameters of the alias tokenizer: its own, or those of the structure tokenizer if they are shared."""
        if not self.shared:
            return params["alias"]
        structure = params["structure"]
        return {"autoencoder": structure["autoencoder"], "codebook": structure["quantizer"]["codebook"]}

    def residuals(self, views: Sequence[View]) -> list[jax.Array]:
        """Residuals A_k of all scales except the last, where A_k holds only noise."""
        return [view.residual for view in views[:-1]]

    def encode(self, params, image_bhwc: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        """Tokenizes images without adding noise to their views.

        Args:
          params: The parameter tree.
          image_bhwc: Images (b, h, w, 3) in [-1, 1].

        Returns:
          Structure tokens r_1 ... r_K and alias tokens a_1 ... a_{K-1}, each map (b, p_k, p_k) int32. Without an alias
          stream the second list is empty.
        """
        views = self.optics.views(image_bhwc)
        structure = self._structure(params)("encode", [v.focused for v in views])
        if self.alias is None:
            return structure, []
        bound = Bound(self.alias, self.alias_params(params))
        residuals = [residual / params["residual_std"][k] for k, residual in enumerate(self.residuals(views))]
        return structure, [bound("nearest", latent) for latent in bound("latents", residuals)]

    def _structure(self, params) -> Bound[StructureTokenizer]:
        return Bound(self.structure, params["structure"])

    def f_hats(self, params, tokens: Sequence[jax.Array]) -> list[jax.Array]:
        """Cumulative latents of structure token maps."""
        return self._structure(params)("f_hats", tokens)

    def decode(self, params, f_hat: jax.Array) -> jax.Array:
        """Decodes the last cumulative latent to an image (b, h, w, 3) in [-1, 1]."""
        return self._structure(params)("decode", f_hat)

    def decode_views(self, params, f_hats: Sequence[jax.Array]) -> list[jax.Array]:
        """Decodes the cumulative latents of all scales, the coarser ones on one canvas; see `decode_view`."""
        if self.structure.pyramid == "var":
            return [self.decode(params, f_hat) for f_hat in f_hats]
        structure = self._structure(params)
        states = [structure("view", f_hat, scale) for scale, f_hat in enumerate(f_hats[:-1])]
        coarse = structure("decode_views", states)
        return [*(jnp.clip(view, -1, 1) for view in coarse), self.decode(params, f_hats[-1])]

    def decode_view(self, params, f_hat: jax.Array, scale: int) -> jax.Array:
        """Decodes the cumulative latent after a scale to the focused view of that scale.

        Args:
          params: The parameter tree.
          f_hat: Cumulative latent after the scale.
          scale: Index of the scale, 0 for the coarsest.

        Returns:
          The view, (b, f p_k, f p_k, 3) in [-1, 1]. With a `var` pyramid it is an image of full size, because the
          coarse latents of that pyramid are not trained to decode at their own side.
        """
        if self.structure.pyramid == "var":
            return self.decode(params, f_hat)
        return self.decode(params, self._structure(params)("view", f_hat, scale))
