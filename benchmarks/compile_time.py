"""Measures how long the first step of stage 1 takes to compile: ten views are ten shapes of one encoder and decoder.

    python -m benchmarks.compile_time d16 k4

This traces and compiles the whole update (both tokenizers, all losses, discriminator, revival) of configs/d16.py, with
and without the argument, for one image on this machine's first device.
"""

import importlib
import sys
import time

import jax
import jax.numpy as jnp

from refocus_jax.config import build


def measure(name: str, argument: str | None) -> None:
    c = importlib.import_module(f"configs.{name}").get_config(argument)
    c.tokenizer.model.dtype = "float32"  # on CPUs, compilation for bfloat16 takes several times as long
    task = build.tokenizer_task(c)
    state = jax.eval_shape(task.init, jax.random.key(0))
    batch = {"image": jax.ShapeDtypeStruct((1, c.image_size, c.image_size, 3), jnp.uint8)}
    start = time.perf_counter()
    lowered = jax.jit(task.update).lower(state, task.frozen_shapes, batch, jax.random.key(0))
    traced = time.perf_counter()
    lowered.compile()
    done = time.perf_counter()
    print(f"{name}:{argument or ''} {len(c.grid_sizes)} views: traced in {traced - start:.0f} s, "
          f"compiled in {done - traced:.0f} s", flush=True)


if __name__ == "__main__":
    for chosen in (*sys.argv[2:], None):
        measure(sys.argv[1], chosen)
