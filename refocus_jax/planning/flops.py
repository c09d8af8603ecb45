"""Floating-point operations of a program, counted by what it multiplies: products and convolutions, nothing else.

A multiplication with its addition counts as two. Loops count as often as they run, which XLA's own count does not know.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.interpreters import partial_eval


def count(function: Callable, *arguments: Any) -> float:
    """FLOPs of function(*arguments), of all devices together.

    What a backward pass computes again (remat) counts again: choose a model without for what training needs.

    Args:
      arguments: pytrees of arrays or shapes.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count(used)


def _count(jaxpr) -> float:
    return sum(map(_count_equation, jaxpr.eqns))


def _count_equation(equation) -> float:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        return _product(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "scan":
        return parameters["length"] * _count(parameters["jaxpr"].jaxpr)
    if name == "cond":
        return max(_count(branch.jaxpr) for branch in parameters["branches"])
    if name == "pallas_call":
        raise ValueError("a kernel of its own cannot be counted; count the model with attention 'prefix'")
    inner = [value for parameter in parameters.values() for value in _as_jaxprs(parameter)]
    return sum(map(_count, inner))


def _as_jaxprs(parameter: Any):
    """The programs in a parameter of a call: jit, a checkpoint, a custom derivative, a while loop (counted once)."""
    if hasattr(parameter, "jaxpr"):
        parameter = parameter.jaxpr
    return [parameter] if hasattr(parameter, "eqns") else []


def _product(equation) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution(equation) -> float:
    """Only products with real numbers: none with padding, nor with the zeros between those of a dilated input."""
    parameters, numbers = equation.params, equation.params["dimension_numbers"]
    image, kernel, out = (v.aval.shape for v in (*equation.invars, *equation.outvars))
    pairs = math.prod(_pairs(image[a], kernel[b], out[c], *rest) for a, b, c, *rest in zip(
        numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], parameters["window_strides"],
        parameters["padding"], parameters["lhs_dilation"], parameters["rhs_dilation"], strict=True))
    batch, features = (out[axis] for axis in numbers.out_spec[:2])
    return 2.0 * batch * features * kernel[numbers.rhs_spec[1]] * pairs / parameters["batch_group_count"]


def _pairs(size: int, taps: int, outputs: int, stride: int, padding: Sequence[int], dilation: int,
           tap_dilation: int) -> int:
    """Along one axis, how many pairs of an output and a tap meet a number of the input."""
    place = np.arange(outputs)[:, None] * stride + np.arange(taps)[None] * tap_dilation - padding[0]
    return int(np.sum((place >= 0) & (place <= (size - 1) * dilation) & (place % dilation == 0)))
