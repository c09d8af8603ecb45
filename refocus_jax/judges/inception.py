"""The InceptionV3 of 2015 that defines FID, as computed by TensorFlow's frozen graph.

Szegedy et al. 2015; Heusel et al. 2017. The parts have the names of the PyTorch port, so that its files can be loaded.

This network differs from later InceptionV3s: average pools ignore padding, the last block has a maximum pool, there are
1008 outputs, and the bilinear resize places the centre of the first pixel at 0. Batch statistics are folded into the
convolutions.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from refocus_jax.judges import state_dict

IMAGE_SIZE = 299
NUM_CLASSES = 1008
SPATIAL_CHANNELS = 7  # of Mixed_6d.branch1x1 (mixed_6/conv in TensorFlow's graph), for sFID
_NORM_EPSILON = 1e-3


class InceptionFeatures(NamedTuple):
    """The network's features of b images, float32.

    Attributes:
      pool: (b, 2048), for FID.
      spatial: (b, 17, 17, 7), for sFID.
      logits: (b, 1008) without bias; their softmax gives the Inception Score in torch-fidelity and ADM's evaluation.
      pool_64: Mean of an earlier layer, (b, 64).
      pool_192: Mean of an earlier layer, (b, 192).
      pool_768: Mean of an earlier layer, (b, 768).
    """

    pool: jax.Array
    spatial: jax.Array
    logits: jax.Array
    pool_64: jax.Array
    pool_192: jax.Array
    pool_768: jax.Array


class Step(NamedTuple):
    """A convolution with folded batch statistics, followed by ReLU.

    Attributes:
      name: Name in the PyTorch port.
      features: Number of output channels.
      kernel: (height, width).
      strides: Stride of both axes.
      padding: "SAME" or "VALID".
    """

    name: str
    features: int
    kernel: tuple[int, int] = (1, 1)
    strides: int = 1
    padding: str = "SAME"


def resize(pixels_bhwc: jax.Array, side: int = IMAGE_SIZE) -> jax.Array:
    """Resize as TensorFlow 1 does, bilinearly without half-pixel centres: output i lies at i n / side of the input."""
    rows, columns = (_resize_matrix(n, side) for n in pixels_bhwc.shape[1:3])
    return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, pixels_bhwc, precision=jax.lax.Precision.HIGHEST)


def _resize_matrix(n: int, m: int) -> np.ndarray:
    place = np.arange(m, dtype=np.float32) * np.float32(n / m)  # with TensorFlow's rounding
    low = place.astype(np.int32)
    matrix = np.zeros((m, n), np.float32)
    matrix[np.arange(m), low] = 1 - (place - low)
    matrix[np.arange(m), np.minimum(low + 1, n - 1)] += place - low
    return matrix


class Fork(NamedTuple):
    """Two convolutions of the same input, whose results are concatenated."""

    left: Step
    right: Step


class Block(NamedTuple):
    """Parallel chains whose results are concatenated.

    Attributes:
      chains: Chains of steps that act on the input.
      pool: "average" or "maximum" over 3 x 3 pixels, or "halve", a maximum over 3 x 3 pixels with stride 2.
      pooled: Steps of the last chain, which acts on the pooled input; may be empty.
    """

    chains: tuple[tuple[Step | Fork, ...], ...]
    pool: str
    pooled: tuple[Step, ...]


_ACROSS, _DOWN = (1, 7), (7, 1)
_HALVING: dict[str, Any] = dict(kernel=(3, 3), strides=2, padding="VALID")


def _block_35(pool_features: int) -> Block:
    return Block(((Step("branch1x1", 64),),
                  (Step("branch5x5_1", 48), Step("branch5x5_2", 64, (5, 5))),
                  (Step("branch3x3dbl_1", 64), Step("branch3x3dbl_2", 96, (3, 3)), Step("branch3x3dbl_3", 96, (3, 3)))),
                 "average", (Step("branch_pool", pool_features),))


def _block_17(width: int) -> Block:
    double = ((_DOWN, width), (_ACROSS, width), (_DOWN, width), (_ACROSS, 192))
    return Block(((Step("branch1x1", 192),),
                  (Step("branch7x7_1", width), Step("branch7x7_2", width, _ACROSS), Step("branch7x7_3", 192, _DOWN)),
                  (Step("branch7x7dbl_1", width), *(Step(f"branch7x7dbl_{i}", features, kernel)
                                                    for i, (kernel, features) in enumerate(double, start=2)))),
                 "average", (Step("branch_pool", 192),))


def _block_8(pool: str) -> Block:
    def fork(name):
        return Fork(Step(f"{name}a", 384, (1, 3)), Step(f"{name}b", 384, (3, 1)))
    return Block(((Step("branch1x1", 320),),
                  (Step("branch3x3_1", 384), fork("branch3x3_2")),
                  (Step("branch3x3dbl_1", 448), Step("branch3x3dbl_2", 384, (3, 3)), fork("branch3x3dbl_3"))),
                 pool, (Step("branch_pool", 192),))


BLOCKS = {
    "Mixed_5b": _block_35(32), "Mixed_5c": _block_35(64), "Mixed_5d": _block_35(64),
    "Mixed_6a": Block(((Step("branch3x3", 384, **_HALVING),),
                       (Step("branch3x3dbl_1", 64), Step("branch3x3dbl_2", 96, (3, 3)),
                        Step("branch3x3dbl_3", 96, **_HALVING))), "halve", ()),
    "Mixed_6b": _block_17(128), "Mixed_6c": _block_17(160), "Mixed_6d": _block_17(160), "Mixed_6e": _block_17(192),
    "Mixed_7a": Block(((Step("branch3x3_1", 192), Step("branch3x3_2", 320, **_HALVING)),
                       (Step("branch7x7x3_1", 192), Step("branch7x7x3_2", 192, _ACROSS),
                        Step("branch7x7x3_3", 192, _DOWN), Step("branch7x7x3_4", 192, **_HALVING))), "halve", ()),
    "Mixed_7b": _block_8("average"), "Mixed_7c": _block_8("maximum"),
}


def _pool(x_bhwc: jax.Array, kind: str) -> jax.Array:
    if kind == "average":
        return nn.avg_pool(x_bhwc, (3, 3), padding="SAME", count_include_pad=False)
    if kind == "maximum":
        return nn.max_pool(x_bhwc, (3, 3), padding="SAME")
    return nn.max_pool(x_bhwc, (3, 3), (2, 2))  # halve


class Mixed(nn.Module, kw_only=True):
    """A block of BLOCKS as a module."""

    block: Block
    precision: jax.lax.Precision | None

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """Map features (b, h, w, c) to the concatenated results of all chains."""
        def run(x, chain):
            for step in chain:
                if isinstance(step, Fork):
                    return [_convolve(x, side, self.precision) for side in step]
                x = _convolve(x, step, self.precision)
            return [x]

        chains = [(x_bhwc, chain) for chain in self.block.chains]
        pooled = (_pool(x_bhwc, self.block.pool), self.block.pooled)
        return jnp.concatenate([part for x, chain in (*chains, pooled) for part in run(x, chain)], axis=-1)


def _convolve(x_bhwc: jax.Array, step: Step, precision) -> jax.Array:
    """Apply one step as a submodule of the calling module."""
    return nn.relu(nn.Conv(step.features, step.kernel, (step.strides, step.strides), step.padding,
                           precision=precision, name=step.name)(x_bhwc))


class InceptionV3(nn.Module, kw_only=True):
    """The network, from pixels (b, h, w, 3) in [0, 255] of any size to `InceptionFeatures`."""

    precision: jax.lax.Precision | None = None

    @nn.compact
    def __call__(self, pixels_bhwc: jax.Array) -> InceptionFeatures:
        """Compute the features of pixels (b, h, w, 3)."""
        def mean(x):
            return x.mean(axis=(1, 2))

        x = (resize(pixels_bhwc) - 128) / 128
        for step in (Step("Conv2d_1a_3x3", 32, **_HALVING), Step("Conv2d_2a_3x3", 32, (3, 3), padding="VALID"),
                     Step("Conv2d_2b_3x3", 64, (3, 3))):
            x = _convolve(x, step, self.precision)
        x = _pool(x, "halve")
        pool_64 = mean(x)
        for step in (Step("Conv2d_3b_1x1", 80), Step("Conv2d_4a_3x3", 192, (3, 3), padding="VALID")):
            x = _convolve(x, step, self.precision)
        x = _pool(x, "halve")
        pool_192, after = mean(x), {}
        for name, block in BLOCKS.items():
            x = after[name] = Mixed(block=block, precision=self.precision, name=name)(x)
        logits = nn.Dense(NUM_CLASSES, use_bias=False, precision=self.precision, name="fc")(mean(x))
        return InceptionFeatures(mean(x), after["Mixed_6d"][..., :SPATIAL_CHANNELS], logits, pool_64, pool_192,
                                 mean(after["Mixed_6e"]))


def from_state_dict(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Convert the arrays of `pt_inception-2015-12-05`, as published by pytorch-fid and torch-fidelity, to parameters.

    Args:
      arrays: The arrays by name.

    Returns:
      The tree of parameters.

    Raises:
      ValueError: If arrays are missing or have another shape; the message lists all of them.
    """
    network, sources = InceptionV3(), {}
    for path in flatten_dict(state_dict.parameter_shapes(network)):
        layer = path[:-1]
        name = ".".join(layer)
        sources[layer] = state_dict.Source("fc") if name == "fc" else state_dict.Source(f"{name}.conv", f"{name}.bn")
    return state_dict.parameters(network, arrays, sources, _NORM_EPSILON)
