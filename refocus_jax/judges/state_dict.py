"""Conversion of PyTorch state dicts of feature networks: kernels are transposed, batch statistics are folded in."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict


class Source(NamedTuple):
    """The names of a layer in the file.

    Attributes:
      layer: The arrays are `layer`.weight and, for a layer with a bias but without a norm, `layer`.bias.
      norm: Name of the BatchNorm that is folded into the layer; None if there is none.
    """

    layer: str
    norm: str | None = None


def parameter_shapes(network: nn.Module) -> Any:
    """Return the tree of a feature network's parameters as shapes and dtypes."""
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]


def parameters(network: nn.Module, arrays: Mapping[str, np.ndarray], sources: Mapping[tuple[str, ...], Source],
               epsilon: float = 0.0) -> dict[str, Any]:
    """Convert the arrays of a state dict to the parameters of a network; other arrays are ignored.

    Args:
      network: The network.
      arrays: The arrays by name.
      sources: Names in the file of every layer, by its path in the network.
      epsilon: Epsilon of all BatchNorms.

    Returns:
      The tree of parameters, float32.

    Raises:
      ValueError: If arrays are missing or have another shape; the message lists all of them.
    """
    template = flatten_dict(parameter_shapes(network))
    expected = {}
    for path, source in sources.items():
        shape = template[*path, "kernel"].shape
        expected[f"{source.layer}.weight"] = _to_official(shape)
        if (*path, "bias") in template:
            names = _norm_names(source.norm) if source.norm else (f"{source.layer}.bias",)
            expected |= dict.fromkeys(names, shape[-1:])
    missing = sorted(expected.keys() - arrays.keys())
    differing = [f"{name} {arrays[name].shape} instead of {shape}" for name, shape in sorted(expected.items())
                 if name in arrays and arrays[name].shape != shape]
    if missing or differing:
        raise ValueError(f"the arrays are not those of {type(network).__name__}; missing: "
                         f"{', '.join(missing) or 'nothing'}; of another shape: {', '.join(differing) or 'nothing'}")
    layers = {}
    for path, source in sources.items():
        kernel = _to_ours(np.asarray(arrays[f"{source.layer}.weight"], np.float64))
        if source.norm:
            scale, shift, mean, variance = (np.asarray(arrays[name], np.float64) for name in _norm_names(source.norm))
            scale = scale / np.sqrt(variance + epsilon)
            kernel, layers[*path, "bias"] = kernel * scale, np.float32(shift - mean * scale)
        elif (*path, "bias") in template:
            layers[*path, "bias"] = np.float32(arrays[f"{source.layer}.bias"])
        layers[*path, "kernel"] = np.float32(kernel)
    return unflatten_dict(layers)


def _norm_names(norm: str) -> tuple[str, ...]:
    return tuple(f"{norm}.{name}" for name in ("weight", "bias", "running_mean", "running_var"))


def _to_official(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Convert a shape from (h, w, in, out) to (out, in, h, w), or from (in, out) to (out, in)."""
    return (shape[-1], shape[-2], *shape[:-2])


def _to_ours(kernel: np.ndarray) -> np.ndarray:
    return np.moveaxis(kernel, (1, 0), (-2, -1))
