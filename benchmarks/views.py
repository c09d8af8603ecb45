"""Compares both implementations of the blur of focus views: sums of separable matrices, and convolution.

    python -m benchmarks.views                                # processor seconds here
    pip install -e '.[plan-tpu]'
    python -m benchmarks.views --topology=tpu:v5e:2x2         # cycles on a TPU, by its compiler's own estimate
    python -m benchmarks.views --topology=gpu:a100:1x1        # GFLOP on a GPU, whose compiler gives no estimate

It computes the views L of var10 at 256 px and of tiny at 64 px, in float32.
"""

import argparse
import dataclasses
import functools
import re
import time

import jax
import jax.numpy as jnp
import numpy as np

from refocus_jax.config import build, catalog
from refocus_jax.focus import Pyramid
from refocus_jax.planning import flops, targets

CONFIGS = {"tiny": "tiny", "var10": "d16"}


def focused(pyramid: Pyramid, implementation: str, image_bhwc: jax.Array) -> list[jax.Array]:
    return [view.focused for view in dataclasses.replace(pyramid, implementation=implementation).views(image_bhwc)]


def seconds(function, image_bhwc: np.ndarray, turns: int = 7) -> float:
    """Measures the median processor time of one call."""
    jax.block_until_ready(function(image_bhwc))
    found = []
    for _ in range(turns):
        began = time.process_time()
        jax.block_until_ready(function(image_bhwc))
        found.append(time.process_time() - began)
    return float(np.median(found))


def cost(function, shape: tuple[int, ...], topology: str) -> float:
    """Estimates the cost of one call on one chip; on GPUs it checks that the program compiles.

    Returns:
      Millions of cycles on a TPU, from its compiler's notes at every instruction, or GFLOP on a GPU.
    """
    target = targets.load(topology)
    image = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=jax.sharding.SingleDeviceSharding(target.devices[0]))
    compiled = function.lower(image).compile(target.compiler_options)
    if target.platform == "gpu":
        return flops.count(function, image) / 1e9
    return sum(int(n) for n in re.findall(r'"estimated_cycles":"(\d+)"', compiled.as_text())) / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", help="as for --mode=plan; default: measure here")
    parser.add_argument("--batch", type=int, default=4)
    given = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", not given.topology)
    unit = {"tpu": "Mcycles", "gpu": "GFLOP"}.get((given.topology or "").partition(":")[0], "processor s")
    print(f"| views | batch | {unit}, convolution | matrices | ratio | "
          "largest difference |\n| --- | --- | --- | --- | --- | --- |")
    for name, config in CONFIGS.items():
        pyramid = build.tokenizer(catalog.load(config)).optics
        shape = (given.batch, pyramid.image_size, pyramid.image_size, 3)
        image = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
        both = [jax.jit(functools.partial(focused, pyramid, how)) for how in ("convolution", "matrices")]
        before, after = (cost(f, shape, given.topology) if given.topology else seconds(f, image) for f in both)
        difference = max(np.abs(a - b).max() for a, b in zip(*(f(image) for f in both), strict=True))
        print(f"| {name} | {given.batch} | {before:.3g} | {after:.3g} | {before / after:.3g} | {difference:.1e} |",
              flush=True)


if __name__ == "__main__":
    main()
