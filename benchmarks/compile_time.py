"""Measures how long the first step of stage 1 takes to compile: ten views are ten shapes of one encoder and decoder.

    python -m benchmarks.compile_time d16 k4

This traces and compiles the whole update (both tokenizers, all losses, discriminator, revival) of configs/d16.py, with
and without the argument, for one image on this machine's first device.
`--collect-often` leaves Python's garbage collector as it is, which the command line does not.
"""

import argparse
import importlib
import time

import jax
import jax.numpy as jnp

from refocus_jax.config import build
from refocus_jax.runtime import memory


def measure(name: str, argument: str | None) -> None:
    c = importlib.import_module(f"configs.{name}").get_config(argument)
    c.tokenizer.model.dtype = "float32"  # on CPUs, compilation for bfloat16 takes several times as long
    task = build.tokenizer_task(c)
    state = jax.eval_shape(task.init, jax.random.key(0))
    batch = {"image": jax.ShapeDtypeStruct((1, c.image_size, c.image_size, 3), jnp.uint8)}
    start, used = time.perf_counter(), time.process_time()
    lowered = jax.jit(task.update).lower(state, task.frozen_shapes, batch, jax.random.key(0))
    traced, used = time.perf_counter(), time.process_time() - used
    print(f"{name}:{argument or ''} {len(c.grid_sizes)} views: traced in {traced - start:.0f} s "
          f"({used:.1f} s of processor time), ", end="", flush=True)
    lowered.compile()
    print(f"compiled in {time.perf_counter() - traced:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--collect-often", action="store_true")
    given = parser.parse_args()
    if not given.collect_often:
        memory.collect_less_often()
    for chosen in (*given.arguments, None):
        measure(given.config, chosen)
