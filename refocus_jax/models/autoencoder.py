"""Networks between images and latents, channels last.

`Encoder` and `Decoder` are VAR's, their submodules named as in the official state dict. `PatchAutoencoder` serves the
alias residuals.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from refocus_jax.models.sharding import keep_divided

# By name, what a block keeps of its forward pass. All but the convolutions is normalization: little work, but in
# float32, so that keeping it takes several times the memory of the convolutions' results.
REMAT = {"none": jax.checkpoint_policies.everything_saveable, "blocks": jax.checkpoint_policies.nothing_saveable,
         "products": jax.checkpoint_policies.save_only_these_names("convolution")}


def _recomputed(module: type[nn.Module], remat: str) -> type[nn.Module]:
    return module if remat == "none" else nn.remat(module, policy=REMAT[remat])


class Norm(nn.Module):
    """GroupNorm in float32, epsilon 1e-6, and SiLU if asked for; the caller's activations keep their dtype."""

    groups: int
    silu: bool = False

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        if x_bhwc.shape[-1] % self.groups:
            raise ValueError(f"norm_groups {self.groups} does not divide {x_bhwc.shape[-1]} channels; "
                             "lower norm_groups or change channels")
        norm = nn.GroupNorm(num_groups=self.groups, epsilon=1e-6, dtype=jnp.float32, name="norm")
        x_bhwc = norm(x_bhwc).astype(x_bhwc.dtype)
        return nn.silu(x_bhwc) if self.silu else x_bhwc


# PyTorch's default, which VAR's autoencoder uses: a third of the variance of flax's, so residual branches start small.
_KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _conv(features: int, size: int, dtype, name: str | None, strides: int = 1, padding="SAME") -> nn.Conv:
    return nn.Conv(features, (size, size), (strides, strides), padding, dtype=dtype, kernel_init=_KERNEL_INIT,
                   name=name)


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, norm, SiLU, conv, plus a 1x1 shortcut where the channels change."""

    features: int
    groups: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        x_bhwc = keep_divided(x_bhwc)
        h = _conv(self.features, 3, self.dtype, "conv1")(Norm(self.groups, True, name="norm1")(x_bhwc))
        h = checkpoint_name(h, "convolution")
        h = _conv(self.features, 3, self.dtype, "conv2")(Norm(self.groups, True, name="norm2")(h))
        if x_bhwc.shape[-1] != self.features:
            x_bhwc = _conv(self.features, 1, self.dtype, "nin_shortcut")(x_bhwc)
        return x_bhwc + h


class AttentionBlock(nn.Module):
    """Single-head self-attention over all pixels, residual."""

    groups: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        b, h, w, c = x_bhwc.shape
        qkv = _conv(3 * c, 1, self.dtype, "qkv")(Norm(self.groups, name="norm")(x_bhwc))
        q, k, v = jnp.split(qkv.reshape(b, h * w, 3 * c), 3, axis=-1)
        logits = jnp.einsum("bic,bjc->bij", q, k, preferred_element_type=jnp.float32) * c**-0.5
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        out = jnp.einsum("bij,bjc->bic", weights, v).reshape(b, h, w, c)
        return x_bhwc + _conv(c, 1, self.dtype, "proj_out")(out)


class Encoder(nn.Module):
    """Image (b, h, w, 3) to features (b, h / f, w / f, latent_channels), f = 2 ** (levels - 1)."""

    channels: int
    channel_multipliers: Sequence[int]
    num_residual_blocks: int
    latent_channels: int
    groups: int
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, image_bhwc: jax.Array) -> jax.Array:
        x = _conv(self.channels, 3, self.dtype, "conv_in")(image_bhwc)
        block, last = _recomputed(ResidualBlock, self.remat), len(self.channel_multipliers) - 1
        for level, multiplier in enumerate(self.channel_multipliers):
            for i in range(self.num_residual_blocks):
                features = self.channels * multiplier
                x = block(features, self.groups, self.dtype, name=f"down_{level}_block_{i}")(x)
                if level == last:
                    x = AttentionBlock(self.groups, self.dtype, name=f"down_{level}_attn_{i}")(x)
            if level != last:
                # Padded at the bottom and right only, as VAR does.
                x = _conv(x.shape[-1], 3, self.dtype, f"down_{level}_downsample", strides=2,
                          padding=((0, 1), (0, 1)))(x)
        x = block(x.shape[-1], self.groups, self.dtype, name="mid_block_1")(x)
        x = AttentionBlock(self.groups, self.dtype, name="mid_attn_1")(x)
        x = block(x.shape[-1], self.groups, self.dtype, name="mid_block_2")(x)
        x = _recomputed(Norm, self.remat)(self.groups, True, name="norm_out")(x)
        return _conv(self.latent_channels, 3, self.dtype, "conv_out")(x)


class Decoder(nn.Module):
    """Latent (b, p, p, c) to image (b, f p, f p, 3), not clamped. `head` is the last convolution alone.

    The last layer stands apart because the adversarial weight is measured at its kernel.
    """

    channels: int
    channel_multipliers: Sequence[int]
    num_residual_blocks: int
    image_channels: int
    groups: int
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        self.conv_out = _conv(self.image_channels, 3, self.dtype, None)

    @nn.compact
    def features(self, latent_bhwc: jax.Array) -> jax.Array:
        """Everything before the last convolution: (b, f p, f p, channels)."""
        block, last = _recomputed(ResidualBlock, self.remat), len(self.channel_multipliers) - 1
        x = _conv(self.channels * self.channel_multipliers[-1], 3, self.dtype, "conv_in")(latent_bhwc)
        x = block(x.shape[-1], self.groups, self.dtype, name="mid_block_1")(x)
        x = AttentionBlock(self.groups, self.dtype, name="mid_attn_1")(x)
        x = block(x.shape[-1], self.groups, self.dtype, name="mid_block_2")(x)
        for level in range(last, -1, -1):
            features = self.channels * self.channel_multipliers[level]
            for i in range(self.num_residual_blocks + 1):
                x = block(features, self.groups, self.dtype, name=f"up_{level}_block_{i}")(x)
                if level == last:
                    x = AttentionBlock(self.groups, self.dtype, name=f"up_{level}_attn_{i}")(x)
            if level != 0:
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
                x = _conv(features, 3, self.dtype, f"up_{level}_upsample")(x)
        return _recomputed(Norm, self.remat)(self.groups, True, name="norm_out")(x)

    def head(self, features_bhwc: jax.Array) -> jax.Array:
        return self.conv_out(features_bhwc).astype(jnp.float32)

    def __call__(self, latent_bhwc: jax.Array) -> jax.Array:
        return self.head(self.features(latent_bhwc))


class PatchAutoencoder(nn.Module):
    """Linear patches with residual blocks between them: the small network for alias residuals.

    A residual is what lies near the Nyquist rate, almost white noise. VAR's encoder, strided convolutions under
    GroupNorm, stays on the plateau of predicting zero there even without quantization; linear patches reach what
    principal components explain within a few hundred steps (docs/measurements/alias_tokenizer.md).
    """

    channels: int
    num_residual_blocks: int
    latent_channels: int
    norm_groups: int
    stride: int
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        def blocks():
            return [ResidualBlock(self.channels, self.norm_groups, self.dtype)
                    for _ in range(self.num_residual_blocks)]

        patch = (self.stride, self.stride)
        self.patch_embed = nn.Conv(self.channels, patch, patch, "VALID", dtype=self.dtype)
        self.encoder_blocks, self.decoder_blocks = blocks(), blocks()
        self.to_latent = nn.Dense(self.latent_channels, dtype=self.dtype)
        self.from_latent = nn.Dense(self.channels, dtype=self.dtype)
        self.to_patch = nn.Dense(3 * self.stride**2, dtype=self.dtype)

    def encode(self, image_bhwc: jax.Array) -> jax.Array:
        """(b, h, w, 3) to float32 (b, h / stride, w / stride, latent_channels)."""
        x = self.patch_embed(image_bhwc)
        for block in self.encoder_blocks:
            x = block(x)
        return self.to_latent(x).astype(jnp.float32)

    def decode(self, latent_bhwc: jax.Array) -> jax.Array:
        """The inverse shapes, float32, not clamped."""
        x = self.from_latent(latent_bhwc)
        for block in self.decoder_blocks:
            x = block(x)
        b, h, w, _ = x.shape
        patches = self.to_patch(x).astype(jnp.float32).reshape(b, h, w, self.stride, self.stride, 3)
        return patches.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * self.stride, w * self.stride, 3)
