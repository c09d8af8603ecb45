"""Measures one step of stage 1 and its parts on this machine, and the time that the step takes to compile.

    python -m benchmarks.stage1                    # tiny, with the batch size of its config
    python -m benchmarks.stage1 --config=d16:k4 --batch=1 --what step

Each line gives the time to compile, the wall time and processor time of a run, the FLOPs of convolutions and products
that the computation needs (`planning.flops`), and their rate as a fraction of this machine's rate in a float32 product.
Two versions are compared by two runs next to each other. The results are in docs/measurements/speed.md.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sample import matrix_rate
from benchmarks.timing import compile_timed
from refocus_jax.config import build, catalog
from refocus_jax.judges import perceptual
from refocus_jax.models.tokenizer import to_unit_range
from refocus_jax.planning import flops

REPEAT, STEPS = 5, 5


def report(what: str, function, *arguments) -> None:
    """Compiles, runs and prints one line: the best of `REPEAT` means over `STEPS` runs."""
    compiled, compilation = compile_timed(function, arguments)
    needed = flops.count(function, *arguments)
    jax.block_until_ready(compiled(*arguments))
    wall, processor = [], []
    for _ in range(REPEAT):
        begun = time.perf_counter(), time.process_time()
        for _ in range(STEPS):
            result = compiled(*arguments)
        jax.block_until_ready(result)
        wall.append((time.perf_counter() - begun[0]) / STEPS)
        processor.append((time.process_time() - begun[1]) / STEPS)
    print(f"| {what} | {compilation:.0f} | {1e3 * min(wall):.1f} | {1e3 * min(processor):.1f} | {needed / 1e9:.2f} | "
          f"{needed / min(wall) / matrix_rate():.0%} |", flush=True)


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--batch", type=int, help="images per step; default that of the config")
    parser.add_argument("--what", nargs="+", default=["step", "parts"], choices=["step", "parts"])
    given = parser.parse_args()
    config = catalog.load(given.config)
    task, chosen = build.tokenizer_task(config), build.perceptual_network(config)
    frozen = chosen.load() if chosen else None
    # After the first step, which replaces all codes.
    state = jax.jit(task.init)(jax.random.key(0)).replace(step=jnp.ones((), jnp.int32))
    side, batch = config.image_size, given.batch or config.tokenizer.train.batch_size
    image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8))
    print("| what | compile s | ms | processor ms | GFLOP | of the product's rate |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    if "step" in given.what:
        report("step", task.update, state, frozen, {"image": image}, jax.random.key(0))
    if "parts" in given.what:
        parts(task, state.params, frozen, to_unit_range(image))


if __name__ == "__main__":
    main()
