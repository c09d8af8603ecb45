"""Networks between images and latents, with channels last.

`Encoder` and `Decoder` are those of VAR, and their submodules are named as in the official state dict.
`PatchAutoencoder` is the network for alias residuals.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from refocus_jax.models.canvas import Canvas, clear, same_view
from refocus_jax.models.norm import Norm
from refocus_jax.models.sharding import keep_divided

# What a block keeps of its forward pass, by the name of the setting. "products" keeps the convolutions. The rest is
# normalization, which is little work but runs in float32, so that keeping it takes several times their memory.
REMAT = {"none": jax.checkpoint_policies.everything_saveable, "blocks": jax.checkpoint_policies.nothing_saveable,
         "products": jax.checkpoint_policies.save_only_these_names("convolution")}


def _recomputed(module: type[nn.Module], remat: str) -> type[nn.Module]:
    return module if remat == "none" else nn.remat(module, policy=REMAT[remat], static_argnums=(2,))


# PyTorch's default initializer, which VAR's autoencoder uses. Its variance is a third of Flax's default, so residual
# branches start small.
_KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _conv(features: int, size: int, dtype, name: str | None, strides: int = 1, padding="SAME") -> nn.Conv:
    return nn.Conv(features, (size, size), (strides, strides), padding, dtype=dtype, kernel_init=_KERNEL_INIT,
                   name=name)


# Which of three taps, at twice the side, read the same pixel of the small image: (tap of two, position, tap of three).
# Positions are reversed: so the results of neighbouring pixels, one after the other, are in the order of the image.
_POSITIONS = np.array([[[1, 1, 0], [1, 0, 0]], [[0, 0, 1], [0, 1, 1]]], np.float32)


class UpsampledConv(nn.Module, kw_only=True):
    """3x3 convolution of an image whose pixels are doubled in both directions, without making that image.

    At each of the four positions inside a doubled pixel, the nine taps fall on only two by two pixels. So one 2x2
    convolution with four times the channels does it, with 4/9 of the products.

    Attributes:
      features: Number of output channels.
      dtype: Compute dtype.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """Maps (b, h, w, c) to (b, 2 h, 2 w, features)."""
        b, h, w, c = x_bhwc.shape
        kernel = self.param("kernel", _KERNEL_INIT, (3, 3, c, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        taps = np.einsum("uir,vjs->uvijrs", _POSITIONS, _POSITIONS).reshape(16, 9)
        kernel = jnp.matmul(taps, kernel.reshape(9, -1), precision=jax.lax.Precision.HIGHEST)
        kernel = jnp.moveaxis(kernel.reshape(2, 2, 4, c, self.features), 2, 3).reshape(2, 2, c, -1)
        # Padded here and not by the convolution, for which XLA computes the gradient of the kernel slowly on a CPU.
        x_bhwc = jnp.pad(x_bhwc.astype(self.dtype), ((0, 0), (1, 1), (1, 1), (0, 0)))
        y = jax.lax.conv_general_dilated(x_bhwc, kernel.astype(self.dtype), (1, 1), "VALID",
                                         dimension_numbers=("NHWC", "HWIO", "NHWC"))
        y = y.reshape(b, h + 1, w + 1, 2, 2, self.features).transpose(0, 1, 3, 2, 4, 5)
        y = y.reshape(b, 2 * h + 2, 2 * w + 2, self.features)[:, 1:-1, 1:-1]
        return y + bias.reshape(1, 1, 1, -1).astype(self.dtype)


class ResidualBlock(nn.Module, kw_only=True):
    """Residual block: twice norm, SiLU and convolution, with a 1x1 shortcut where the number of channels changes.

    Attributes:
      features: Number of output channels.
      groups: Groups of each norm.
      dtype: Compute dtype.
    """

    features: int
    groups: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_bhwc: jax.Array, canvas: Canvas | None = None) -> jax.Array:
        """Maps (b, h, w, c) to (b, h, w, features)."""
        x_bhwc = keep_divided(x_bhwc)
        h = Norm(groups=self.groups, silu=True, name="norm1")(x_bhwc, canvas)
        h = checkpoint_name(_conv(self.features, 3, self.dtype, "conv1")(h), "convolution")
        h = Norm(groups=self.groups, silu=True, name="norm2")(h, canvas)
        h = _conv(self.features, 3, self.dtype, "conv2")(h)
        if x_bhwc.shape[-1] != self.features:
            x_bhwc = _conv(self.features, 1, self.dtype, "nin_shortcut")(x_bhwc)
        return x_bhwc + h


class AttentionBlock(nn.Module, kw_only=True):
    """Single-head self-attention over all pixels of a view, added to its input.

    Attributes:
      groups: Groups of the norm.
      dtype: Compute dtype.
    """

    groups: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_bhwc: jax.Array, canvas: Canvas | None = None) -> jax.Array:
        """Maps (b, h, w, c) to the same shape."""
        b, h, w, c = x_bhwc.shape
        qkv = _conv(3 * c, 1, self.dtype, "qkv")(Norm(groups=self.groups, name="norm")(x_bhwc, canvas))
        q, k, v = jnp.split(qkv.reshape(b, h * w, 3 * c), 3, axis=-1)
        logits = jnp.einsum("bic,bjc->bij", q, k, preferred_element_type=jnp.float32) * c**-0.5
        if canvas is not None:
            logits = jnp.where(same_view(canvas)[None], logits, -jnp.inf)
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        out = jnp.einsum("bij,bjc->bic", weights, v).reshape(b, h, w, c)
        return x_bhwc + _conv(c, 1, self.dtype, "proj_out")(out)


def _blocks(groups: int, dtype, remat: str) -> tuple[Callable[..., nn.Module], Callable[..., nn.Module]]:
    """Makes the constructors of an encoder's or decoder's blocks: residual, and attention."""
    return (functools.partial(_recomputed(ResidualBlock, remat), groups=groups, dtype=dtype),
            functools.partial(AttentionBlock, groups=groups, dtype=dtype))


class Encoder(nn.Module, kw_only=True):
    """VAR's encoder, which divides the side by f = 2 ** (levels - 1).

    Attributes:
      channels: Channels before multiplication.
      channel_multipliers: Factor on the channels of each level, from the largest side to the smallest.
      num_residual_blocks: Residual blocks per level.
      latent_channels: Channels of the output.
      groups: Groups of each norm.
      dtype: Compute dtype.
      remat: What the backward pass keeps, one of `REMAT`.
    """

    channels: int
    channel_multipliers: Sequence[int]
    num_residual_blocks: int
    latent_channels: int
    groups: int
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, image_bhwc: jax.Array, canvas: Canvas | None = None) -> jax.Array:
        """Maps images (b, h, w, 3), or a canvas of them, to features (b, h / f, w / f, latent_channels)."""
        x = _conv(self.channels, 3, self.dtype, "conv_in")(image_bhwc)
        last = len(self.channel_multipliers) - 1
        block, attention = _blocks(self.groups, self.dtype, self.remat)
        for level, multiplier in enumerate(self.channel_multipliers):
            for i in range(self.num_residual_blocks):
                features = self.channels * multiplier
                x = block(features=features, name=f"down_{level}_block_{i}")(x, canvas)
                if level == last:
                    x = attention(name=f"down_{level}_attn_{i}")(x, canvas)
            if level != last:
                # Pad at the bottom and the right only, as VAR does.
                x = _conv(x.shape[-1], 3, self.dtype, f"down_{level}_downsample", strides=2,
                          padding=((0, 1), (0, 1)))(clear(x, canvas))
        x = block(features=x.shape[-1], name="mid_block_1")(x, canvas)
        x = attention(name="mid_attn_1")(x, canvas)
        x = block(features=x.shape[-1], name="mid_block_2")(x, canvas)
        x = _recomputed(Norm, self.remat)(groups=self.groups, silu=True, name="norm_out")(x, canvas)
        return _conv(self.latent_channels, 3, self.dtype, "conv_out")(x)


class Decoder(nn.Module, kw_only=True):
    """VAR's decoder, which multiplies the side by f = 2 ** (levels - 1).

    `head` is the last convolution, `features` everything before it. They are separate because the adversarial weight
    is measured at the kernel of the last convolution.

    Attributes:
      channels: Channels before multiplication.
      channel_multipliers: Factor on the channels of each level, from the largest side to the smallest.
      num_residual_blocks: Residual blocks per level in the encoder; the decoder has one more.
      image_channels: Channels of the image.
      groups: Groups of each norm.
      dtype: Compute dtype.
      remat: What the backward pass keeps, one of `REMAT`.
    """

    channels: int
    channel_multipliers: Sequence[int]
    num_residual_blocks: int
    image_channels: int
    groups: int
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        """Creates the last convolution."""
        self.conv_out = _conv(self.image_channels, 3, self.dtype, None)

    @nn.compact
    def features(self, latent_bhwc: jax.Array, canvas: Canvas | None = None) -> jax.Array:
        """Activations before the last convolution, (b, f p, f p, channels), of latents (b, p, p, c) or a canvas."""
        last = len(self.channel_multipliers) - 1
        block, attention = _blocks(self.groups, self.dtype, self.remat)
        x = _conv(self.channels * self.channel_multipliers[-1], 3, self.dtype, "conv_in")(latent_bhwc)
        x = block(features=x.shape[-1], name="mid_block_1")(x, canvas)
        x = attention(name="mid_attn_1")(x, canvas)
        x = block(features=x.shape[-1], name="mid_block_2")(x, canvas)
        for level in range(last, -1, -1):
            features = self.channels * self.channel_multipliers[level]
            for i in range(self.num_residual_blocks + 1):
                x = block(features=features, name=f"up_{level}_block_{i}")(x, canvas)
                if level == last:
                    x = attention(name=f"up_{level}_attn_{i}")(x, canvas)
            if level != 0:
                x = UpsampledConv(features=features, dtype=self.dtype, name=f"up_{level}_upsample")(clear(x, canvas))
        return _recomputed(Norm, self.remat)(groups=self.groups, silu=True, name="norm_out")(x, canvas)

    def head(self, features_bhwc: jax.Array) -> jax.Array:
        """Applies the last convolution; the image is float32 and not clamped."""
        return self.conv_out(features_bhwc).astype(jnp.float32)

    def __call__(self, latent_bhwc: jax.Array, canvas: Canvas | None = None) -> jax.Array:
        """Maps latents (b, p, p, c) to images (b, f p, f p, image_channels), float32 and not clamped."""
        return self.head(self.features(latent_bhwc, canvas))


class PatchAutoencoder(nn.Module, kw_only=True):
    """Small autoencoder for alias residuals: linear patch layers at both ends, residual blocks between them.

    A residual holds the frequencies near the Nyquist rate and is almost white noise. VAR's encoder, with strided
    convolutions and GroupNorm, never does better there than predicting zero, even without quantization. Linear patches
    reach the variance that principal components explain within a few hundred steps
    (docs/measurements/alias_tokenizer.md).

    Attributes:
      channels: Channels of the patch embedding and of the residual blocks.
      num_residual_blocks: Residual blocks in the encoder, and as many in the decoder.
      latent_channels: Channels of the latent.
      norm_groups: Groups of each norm.
      stride: Side of a patch in pixels.
      dtype: Compute dtype.
    """

    channels: int
    num_residual_blocks: int
    latent_channels: int
    norm_groups: int
    stride: int
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        """Creates the layers."""
        def blocks():
            return [ResidualBlock(features=self.channels, groups=self.norm_groups, dtype=self.dtype)
                    for _ in range(self.num_residual_blocks)]

        patch = (self.stride, self.stride)
        self.patch_embed = nn.Conv(self.channels, patch, patch, "VALID", dtype=self.dtype)
        self.encoder_blocks, self.decoder_blocks = blocks(), blocks()
        self.to_latent = nn.Dense(self.latent_channels, dtype=self.dtype)
        self.from_latent = nn.Dense(self.channels, dtype=self.dtype)
        self.to_patch = nn.Dense(3 * self.stride**2, dtype=self.dtype)

    def encode(self, image_bhwc: jax.Array, canvas: Canvas | None = None) -> jax.Array:
        """Maps images (b, h, w, 3) to float32 latents (b, h / stride, w / stride, latent_channels)."""
        x = self.patch_embed(image_bhwc)
        for block in self.encoder_blocks:
            x = block(x, canvas)
        return self.to_latent(x).astype(jnp.float32)

    def decode(self, latent_bhwc: jax.Array, canvas: Canvas | None = None) -> jax.Array:
        """Maps latents (b, h, w, latent_channels) to float32 images (b, h stride, w stride, 3), not clamped."""
        x = self.from_latent(latent_bhwc)
        for block in self.decoder_blocks:
            x = block(x, canvas)
        b, h, w, _ = x.shape
        patches = self.to_patch(x).astype(jnp.float32).reshape(b, h, w, self.stride, self.stride, 3)
        return patches.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * self.stride, w * self.stride, 3)
