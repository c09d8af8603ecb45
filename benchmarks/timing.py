"""What several benchmarks share: random weights, how programs are compiled and timed, and this machine's rate.

This file is not run.
"""

import functools
import math
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

PRODUCT_SIDE = 4096
NOISE = 1_000_003  # as many random numbers are drawn, and repeated in larger arrays


def seconds(run) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def typical_seconds(run, turns: int = 5, at_least: float = 0.05) -> float:
    """Measures the time of a run after a first one: the median of some turns, each of enough runs to be timed well."""
    seconds(run)
    runs = math.ceil(at_least / seconds(run))

    def turn():
        for _ in range(runs):
            result = run()
        return result

    return statistics.median(seconds(turn) / runs for _ in range(turns))


@functools.cache
def matrix_product():
    a = jax.random.normal(jax.random.key(0), (PRODUCT_SIDE, PRODUCT_SIDE))
    product = jax.jit(jnp.matmul).lower(a, a).compile()
    return lambda: product(a, a)


def matrix_rate() -> float:
    """Measures the FLOP/s of a float32 product of two square matrices, the median of three."""
    return 2 * PRODUCT_SIDE**3 / statistics.median(seconds(matrix_product()) for _ in range(3))


def compile_timed(function, arguments, **options):
    """Traces and compiles, with options of `jax.jit`; returns the program and the seconds that it took."""
    start = time.perf_counter()
    compiled = jax.jit(function, **options).lower(*arguments).compile()
    return compiled, time.perf_counter() - start


def random_like(tree, seed: int = 0):
    """Draws parameters in a tree's shapes with numpy, which is faster than compiling an initializer.

    Kernels keep the variance of their input, and no other array is so small that it does not matter.
    """
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(NOISE, np.float32)

    def draw(path, like):
        if jnp.issubdtype(like.dtype, jnp.integer):
            return jnp.zeros(like.shape, like.dtype)
        names = [part.key for part in path]
        value = np.resize(np.roll(noise, rng.integers(NOISE)), like.shape)
        if names[-1] in ("kernel", "qkv"):
            inputs = like.shape["blocks" in names:-1]  # blocks are stacked along their first axis
            value *= 1 / np.sqrt(np.float32(math.prod(inputs)))
        elif names[-1] == "scale":
            value = 1 + np.float32(0.2) * value
        else:
            value *= np.float32(0.5)
        return jnp.asarray(value)

    return jax.tree_util.tree_map_with_path(draw, tree)


def abstract_random(init, *arguments):
    """Draws parameters as `init` would return them."""
    return random_like(jax.eval_shape(init, *arguments))
