"""PatchGAN discriminator with GroupNorm, which unlike BatchNorm mixes neither samples of a batch nor devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from refocus_jax.models.norm import Norm


class PatchDiscriminator(nn.Module, kw_only=True):
    """Discriminator of patches, as in pix2pix: strided 4x4 convolutions, whose channels double up to eightfold.

    Attributes:
      channels: Channels of the first convolution.
      num_layers: Number of convolutions with stride 2.
      norm_groups: Groups of each norm.
      dtype: Compute dtype.
    """

    channels: int
    num_layers: int
    norm_groups: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image_bhwc: jax.Array) -> jax.Array:
        """Maps images (b, h, w, 3) to one real-or-fake logit per patch, float32."""
        init = nn.initializers.normal(0.02)

        def conv(x, features, strides, name):
            return nn.Conv(features, (4, 4), (strides, strides), ((1, 1), (1, 1)), dtype=self.dtype, kernel_init=init,
                           name=name)(x)

        x = nn.leaky_relu(conv(image_bhwc, self.channels, 2, "conv_0"), 0.2)
        for layer in range(1, self.num_layers + 1):
            strides = 2 if layer < self.num_layers else 1
            x = conv(x, self.channels * min(2**layer, 8), strides, f"conv_{layer}")
            x = nn.leaky_relu(Norm(groups=self.norm_groups, name=f"norm_{layer}")(x), 0.2)
        return conv(x, 1, 1, "conv_out").astype(jnp.float32)
