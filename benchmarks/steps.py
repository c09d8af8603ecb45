"""Measures one step of each stage and the parts of stage 1 on this machine, and the time that they take to compile.

    python -m benchmarks.steps                    # tiny, with the batch sizes of its config
    python -m benchmarks.steps --config=d16:k4 --batch=1 --what stage1

Each line gives the time to compile, the wall time and processor time of a run, both in the best of five turns and on
average, the memory pages that the kernel mapped in a run, the FLOPs of convolutions and products that the computation
needs (`planning.flops`), and their rate as a fraction of this machine's rate in a float32 product. Two versions are
compared by runs in turn. GLIBC_TUNABLES=glibc.malloc.hugetlb=1 gives the large pages that the command line asks for.
The results are in docs/measurements/speed.md.
"""

import argparse
import resource
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import compile_timed, matrix_rate
from refocus_jax.config import build, catalog
from refocus_jax.judges import perceptual
from refocus_jax.models.tokenizer import to_unit_range
from refocus_jax.planning import flops

REPEAT, STEPS, CLASSES = 5, 5, 10


def report(what: str, function, *arguments) -> None:
    """Compiles, runs `REPEAT` turns of `STEPS` runs, and prints one line."""
    compiled, compilation = compile_timed(function, arguments)
    needed = flops.count(function, *arguments)
    jax.block_until_ready(compiled(*arguments))
    wall, processor, pages = [], [], resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(REPEAT):
        begun = time.perf_counter(), time.process_time()
        for _ in range(STEPS):
            result = compiled(*arguments)
        jax.block_until_ready(result)
        wall.append(1e3 * (time.perf_counter() - begun[0]) / STEPS)
        processor.append(1e3 * (time.process_time() - begun[1]) / STEPS)
    pages = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - pages) / REPEAT / STEPS
    print(f"| {what} | {compilation:.0f} | {min(wall):.1f} | {statistics.mean(wall):.1f} | {min(processor):.1f} | "
          f"{statistics.mean(processor):.1f} | {pages:.0f} | {needed / 1e9:.2f} | "
          f"{1e3 * needed / min(wall) / matrix_rate():.0%} |", flush=True)


def parts(task, params, frozen, image) -> None:
    """Measures forward and backward passes of the networks, each on its own."""
    tokenizer = task.tokenizer
    structure = tokenizer.structure
    network = {"params": params["structure"]["autoencoder"]}
    views = jax.jit(tokenizer.optics.views)(image)
    focused = [view.focused for view in views]
    latents = jax.jit(lambda views: structure.apply({"params": params["structure"]}, views, method="latents"))(focused)

    def gradient(method, of, *arguments):
        def loss(params, *arguments):
            return sum(jnp.square(x).sum() for x in jax.tree.leaves(of.apply(params, *arguments, method=method)))
        return jax.grad(loss, argnums=(0, 1)), *arguments

    whole = {"params": params["structure"]}
    report("views", tokenizer.optics.views, image)
    report("encode all views", *gradient("latents", structure, whole, focused))
    report("decode the image", *gradient("decode", structure.autoencoder, network, latents[-1]))
    report("decode the coarser views", *gradient("decode_views", structure, whole, latents[:-1]))
    if tokenizer.alias is not None:
        alias = {"params": tokenizer.alias_params(params)}
        report("encode all residuals", *gradient("latents", tokenizer.alias, alias, tokenizer.residuals(views)))
    if task.perceptual is not None:
        report("perceptual distance", jax.grad(lambda drawn: perceptual.distance(
            task.perceptual, frozen, drawn, image)), 0.9 * image)


def stage2(config, batch: int | None) -> None:
    """Measures the step of stage 2 on tokens."""
    task, rng = build.generator_task(config, CLASSES), np.random.default_rng(0)
    frozen = jax.jit(build.tokenizer_task(config).init)(jax.random.key(1)).params
    batch = batch or config.generator.train.batch_size
    tokens = {"structure": (config.tokenizer.model.vocab_size, task.student.offsets[-1]),
              "alias": (config.tokenizer.alias.vocab_size, task.student.offsets[-2])}
    drawn = {name: jnp.asarray(rng.integers(0, codes, (batch, length), np.int32))
             for name, (codes, length) in tokens.items()}
    label = jnp.asarray(rng.integers(0, CLASSES, batch, np.int32))
    report("step of stage 2", task.update, jax.jit(task.init)(jax.random.key(0)), frozen, {**drawn, "label": label},
           jax.random.key(0))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--batch", type=int, help="images per step; default that of the config")
    whats = ["stage1", "stage2", "parts"]
    parser.add_argument("--what", nargs="+", default=whats, choices=whats)
    given = parser.parse_args()
    config = catalog.load(given.config)
    task, chosen = build.tokenizer_task(config), build.perceptual_network(config)
    frozen = chosen.load() if chosen else None
    # After the first step, which replaces all codes.
    state = jax.jit(task.init)(jax.random.key(0)).replace(step=jnp.ones((), jnp.int32))
    side, batch = config.image_size, given.batch or config.tokenizer.train.batch_size
    image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8))
    print("| what | compile s | ms, best | ms | processor ms, best | processor ms | pages | GFLOP | "
          "of the product's rate |")
    print(f"|{' --- |' * 9}", flush=True)
    if "stage1" in given.what:
        report("step of stage 1", task.update, state, frozen, {"image": image}, jax.random.key(0))
    if "stage2" in given.what:
        stage2(config, given.batch)
    if "parts" in given.what:
        parts(task, state.params, frozen, to_unit_range(image))


if __name__ == "__main__":
    main()
