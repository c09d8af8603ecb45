"""Counts floating-point operations of a program: only those of matrix products and convolutions.

A multiplication and its addition count as two. Loops count as often as they run, unlike in XLA's own count.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.interpreters import partial_eval


def count(function: Callable, *arguments: Any) -> float:
    """Counts the FLOPs of function(*arguments) on all devices together.

    Operations that a backward pass recomputes (remat) count again. Give a model without remat to count only what
    training needs.

    Args:
      function: The function.
      *arguments: Its arguments, pytrees of arrays or shapes.

    Raises:
      ValueError: The program has a Pallas kernel, whose operations cannot be counted.
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
        raise ValueError("a Pallas kernel cannot be counted; count the model with attention 'prefix'")
    inner = [value for parameter in parameters.values() for value in _as_jaxprs(parameter)]
    return sum(map(_count, inner))


def _as_jaxprs(parameter: Any):
    """Lists the programs in a parameter of a jit, checkpoint, custom derivative or while loop (counted once)."""
    if hasattr(parameter, "jaxpr"):
        parameter = parameter.jaxpr
    return [parameter] if hasattr(parameter, "eqns") else []


def _product(equation) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution(equation) -> float:
    """Counts only products with input values, not those with padding or the zeros inside a dilated input."""
    parameters, numbers = equation.params, equation.params["dimension_numbers"]
    image, kernel, out = (v.aval.shape for v in (*equation.invars, *equation.outvars))
    pairs = math.prod(_pairs(image[a], kernel[b], out[c], *rest) for a, b, c, *rest in zip(
        numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], parameters["window_strides"],
        parameters["padding"], parameters["lhs_dilation"], parameters["rhs_dilation"], strict=True))
    batch, features = (out[axis] for axis in numbers.out_spec[:2])
    return 2.0 * batch * features * kernel[numbers.rhs_spec[1]] * pairs / parameters["batch_group_count"]


def _pairs(size: int, taps: int, outputs: int, stride: int, padding: Sequence[int], dilation: int,
           tap_dilation: int) -> int:
    """Counts the pairs of an output and a kernel tap that meet an input value, along one axis."""
    place = np.arange(outputs)[:, None] * stride + np.arange(taps)[None] * tap_dilation - padding[0]
    return int(np.sum((place >= 0) & (place <= (size - 1) * dilation) & (place % dilation == 0)))
