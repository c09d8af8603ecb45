"""Measures the steps of stage 2 per second, with tokens made on the fly and with tokens from a cache.

    python -m benchmarks.tokens

It uses `var10` at 256 px with the published sizes of both tokenizers (random weights, which cost as much as trained
ones) and a narrow generator with its teacher, in float32, on crops of the photographs. The cache is written by the code
of `--mode=encode`. Both variants update the same state with the same code. The benchmark waits for each step, and the
two take turns, because the speed of a shared machine varies. The results are in docs/measurements/data.md.
"""

import argparse
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.data import timed_steps
from benchmarks.timing import abstract_random
from configs import d16
from refocus_jax.config import build, stages
from refocus_jax.data import pipeline, sources, token_cache
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime.digests import digests
from refocus_jax.training import encode


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5, help="of one step on the fly and eight from the cache")
    given = parser.parse_args()
    c = d16.get_config()
    c.data.update(source="photos", resize_ratio=0.0, num_workers=0)
    c.generator.model.update(depth=given.depth, width=given.width, num_heads=given.width // 64, dtype="float32")
    c.generator.train.batch_size = given.batch
    c.tokenizer.model.dtype = "float32"
    c.encode.update(passes=1, batch_size=given.batch)

    source, mesh = sources.load(c.data.source, "train"), mesh_lib.make_mesh()
    task = build.generator_task(c, len(source.class_names))
    frozen = abstract_random(task.tokenizer.init, jax.random.key(0))
    frozen = jax.device_put(frozen | {"residual_std": jnp.ones(len(c.grid_sizes) - 1)}, mesh_lib.replicated(mesh))
    state = jax.jit(task.init, out_shardings=mesh_lib.replicated(mesh))(jax.random.key(1))
    parameters = sum(a.size for a in jax.tree.leaves(state.params["student"]))
    update = jax.jit(task.update)
    print(f"generator of depth {given.depth} and width {given.width} ({parameters / 1e6:.1f} M), batch {given.batch}\n")

    with tempfile.TemporaryDirectory() as directory:
        description = stages.token_description(c, source, digests(frozen), 2 * given.batch)
        cache = encode.write(directory, description, source, build.crop_rule(c), task.tokenizer, frozen)
        crops = pipeline.training_batches(source, build.crop_rule(c), batch_size=given.batch, seed=0)
        iterators = {"on the fly": iter(crops),
                     "from a cache": iter(token_cache.batches(cache, batch_size=given.batch, seed=0))}
        measured = {name: [] for name in iterators}
        for turn in range(given.turns + 1):
            for name, steps in (("on the fly", 1), ("from a cache", 8)):
                rows = timed_steps(update, state, frozen, iterators[name], mesh, steps)
                measured[name] += list(rows) if turn else []  # the first turn compiles
    print("| tokens | steps/s | s per step | waiting for data | processor s per step |")
    print("| --- | --- | --- | --- | --- |")
    for name, rows in measured.items():
        seconds, waited, processor = np.array(rows).T
        print(f"| {name} | {1 / np.median(seconds):.3g} | {np.median(seconds):.3g} | "
              f"{waited.sum() / seconds.sum():.2%} | {np.mean(processor):.3g} |")
    fly, cached = (np.array(measured[name]) for name in iterators)
    print(f"\n{np.median(fly[:, 0]) / np.median(cached[:, 0]):.1f} times as many steps from a cache; by processor time "
          f"{fly[:, 2].mean() / cached[:, 2].mean():.1f}")


if __name__ == "__main__":
    main()
