"""Measures the time that asynchronous saving costs a run that saves every minute.

    python -m benchmarks.saving                       # the generator of tiny
    python -m benchmarks.saving --depth=12 --batch=1  # one of d12's size: 1.6 GB a checkpoint

Trains stage 2 on random tokens in pairs of blocks with the same number of steps, about `--seconds` each: one block
saves a checkpoint at its beginning and writes it while it trains, the other does not. The cost of saving is the
additional time of the first, as a fraction of a minute. It does not depend on the length of the blocks if they are
longer than the writing. On a CPU, writing takes cores from training, unlike on the host of an accelerator.
"""

import argparse
import statistics
import tempfile
import time

import jax
import numpy as np

from configs import tiny
from refocus_jax.config import arguments, build
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime.checkpoint import Checkpoints
from refocus_jax.training import loop

NUM_CLASSES = 14


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--depth", type=int, default=0, help="VAR's size of that depth instead of tiny's")
    parser.add_argument("--batch", type=int, default=32)
    given = parser.parse_args()
    c = tiny.get_config()
    if given.depth:
        arguments.depth(c, given.depth)
    task, mesh = build.generator_task(c, NUM_CLASSES), mesh_lib.make_mesh()
    frozen, key = mesh_lib.put_whole((jax.jit(task.tokenizer.init)(jax.random.key(0)), jax.random.key(1)),
                                     mesh_lib.replicated(mesh))
    rng = np.random.default_rng(0)
    lengths = {"structure": task.student.offsets[-1], "alias": task.student.offsets[-2]}
    batch = mesh_lib.put_batch(mesh, {"label": np.zeros(given.batch, np.int32)} | {
        name: rng.integers(0, 128, (given.batch, length), np.int32) for name, length in lengths.items()})
    abstract = loop.abstract_state(task, mesh)
    update = loop.jit_update(task, loop.LoopSettings(steps=1), mesh, abstract)
    state = loop.init_state(task, jax.random.key(0), mesh, abstract)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))

    def block(state, steps):
        for _ in range(steps):
            state, _ = update(state, frozen, batch, key)
        return jax.block_until_ready(state)

    state = block(state, 2)
    began = time.perf_counter()
    state = block(state, 3)
    steps = max(1, round(given.seconds * 3 / (time.perf_counter() - began)))
    extra, blocked = [], []
    with tempfile.TemporaryDirectory() as directory, Checkpoints(directory) as checkpoints:
        for pair in range(given.pairs):
            times = []
            for saves in (pair % 2 == 0, pair % 2 == 1):  # in turns, because the speed of machines drifts
                began = time.perf_counter()
                if saves:
                    checkpoints.save(int(state.step), state)
                    blocked.append(time.perf_counter() - began)
                state = block(state, steps)
                times.append(time.perf_counter() - began)
                checkpoints.wait()
            extra.append((times[0] - times[1]) * (1 if pair % 2 == 0 else -1))
            print(f"pair {pair + 1}: blocks of {steps} steps, {times[0]:.1f} and {times[1]:.1f} s; with a save "
                  f"{extra[-1]:+.2f} s, of which {blocked[-1]:.2f} s before the first step", flush=True)
    median = statistics.median(extra)
    print(f"{size / 1e6:.0f} MB a checkpoint: {median:.2f} s each (median of {given.pairs}, from {min(extra):.2f} to "
          f"{max(extra):.2f}), {median / 60:.2%} of a run that saves every minute")


if __name__ == "__main__":
    main()
