"""Focus views by sums of separable matrices, as we make them, against the convolution that defines them.

    python -m benchmarks.views                                # processor seconds here
    pip install -e '.[plan-tpu]'
    python -m benchmarks.views --topology=tpu:v5e:2x2         # cycles on a TPU, by its compiler's own estimate

The views L of var10 at 256 px and of tiny at 64 px, float32.
"""

import argparse
import functools
import re
import time

import jax
import jax.numpy as jnp
import numpy as np

from refocus_jax.focus import GRID_SIZES, Pyramid, disk_kernel
from refocus_jax.focus.resample import resize

PYRAMIDS = {"tiny": Pyramid((1, 2, 4, 8), 8, 3.0), "var10": Pyramid(GRID_SIZES["var10"], 16, 12.0)}


def by_matrices(pyramid: Pyramid, image_bhwc: jax.Array) -> list[jax.Array]:
    return [view.focused for view in pyramid.views(image_bhwc)]


def by_convolution(pyramid: Pyramid, image_bhwc: jax.Array) -> list[jax.Array]:
    """The same with one-channel images in the batch axis, which is XLA's fastest form of it on a CPU."""
    views, (b, h, w, c) = [], image_bhwc.shape
    for grid_size, radius in zip(pyramid.grid_sizes, pyramid.radii(), strict=True):
        kernel = disk_kernel(float(radius))
        half = kernel.shape[0] // 2
        planes = jnp.moveaxis(image_bhwc, -1, 1).reshape(b * c, h, w, 1)
        planes = jnp.pad(planes, ((0, 0), (half, half), (half, half), (0, 0)), mode="reflect")
        planes = jax.lax.conv_general_dilated(
            planes, kernel[:, :, None, None], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST)
        blurred = jnp.moveaxis(planes.reshape(b, c, h, w), 1, -1)
        views.append(resize(blurred, pyramid.stride * grid_size, pyramid.downsample))
    return views


def seconds(function, image_bhwc: np.ndarray, turns: int = 7) -> float:
    """Of the processor, for one call; the median."""
    jax.block_until_ready(function(image_bhwc))
    found = []
    for _ in range(turns):
        began = time.process_time()
        jax.block_until_ready(function(image_bhwc))
        found.append(time.process_time() - began)
    return float(np.median(found))


def cycles(function, shape: tuple[int, ...], topology: str) -> float:
    """Of one chip for one call, in millions: the estimates that its compiler notes beside every instruction."""
    from refocus_jax.planning.targets import load
    target = load(topology)
    image = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=jax.sharding.SingleDeviceSharding(target.devices[0]))
    compiled = function.lower(image).compile(target.compiler_options)
    return sum(int(n) for n in re.findall(r'"estimated_cycles":"(\d+)"', compiled.as_text())) / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", help="of TPUs, as for --mode=plan; default: measure here")
    parser.add_argument("--batch", type=int, default=4)
    given = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", not given.topology)
    print(f"| views | batch | {'Mcycles' if given.topology else 'processor s'}, convolution | matrices | ratio | "
          "largest difference |\n| --- | --- | --- | --- | --- | --- |")
    for name, pyramid in PYRAMIDS.items():
        shape = (given.batch, pyramid.image_size, pyramid.image_size, 3)
        image = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
        both = [jax.jit(functools.partial(function, pyramid)) for function in (by_convolution, by_matrices)]
        before, after = (cycles(f, shape, given.topology) if given.topology else seconds(f, image) for f in both)
        difference = max(np.abs(a - b).max() for a, b in zip(*(f(image) for f in both), strict=True))
        print(f"| {name} | {given.batch} | {before:.3g} | {after:.3g} | {before / after:.3g} | {difference:.1e} |",
              flush=True)


if __name__ == "__main__":
    main()
