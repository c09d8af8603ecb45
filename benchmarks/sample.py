"""Compares the speed of sampling, tokenizing and training with that of matrix products on this machine.

    python -m benchmarks.sample                       # sampling with d16's shapes at batch 1, 4 and 8
    python -m benchmarks.sample --what tokenize train # tokenizing 256 px images; one training step
    python -m benchmarks.sample --student mvar        # the same of M-VAR's transformer

Everything is in float32 on random weights and compiled beforehand. Every line gives seconds, the FLOPs that the
computation needs (`planning.flops`), their rate as a fraction of that of a 4096^3 float32 product, and the memory that
the compiled program takes: its arguments, which include the weights, and its intermediate results. Products are timed
right before and after every run, because the speed of a shared machine varies; seconds and fractions are medians over
`--repeat` runs. The results are in docs/measurements/speed.md.
"""

import argparse
import statistics

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import abstract_random, compile_timed, matrix_rate, random_like, seconds
from configs import d16
from refocus_jax.config import build
from refocus_jax.config.arguments import STUDENTS
from refocus_jax.models.bound import Bound
from refocus_jax.planning import flops
from refocus_jax.sampling import decode

NUM_CLASSES = 1000


def report(what: str, function, arguments, repeat: int, counted=None) -> None:
    """Compiles, runs and prints one line; `counted` is the computation without remat, to count its FLOPs."""
    compiled, compilation = compile_timed(function, arguments)
    needed = flops.count(counted or function, *arguments)
    memory = compiled.memory_analysis()
    seconds(lambda: compiled(*arguments))
    rates, times = [matrix_rate()], []
    for _ in range(repeat):
        times.append(seconds(lambda: compiled(*arguments)))
        rates.append(matrix_rate())
    fractions = [needed / t / (0.5 * (a + b)) for t, a, b in zip(times, rates[:-1], rates[1:], strict=True)]
    print(f"| {what} | {compilation:.0f} | {statistics.median(times):.2f} | {needed / 1e12:.3f} | "
          f"{statistics.median(rates) / 1e9:.0f} | {statistics.median(fractions):.0%} | "
          f"{(memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30:.2f} |", flush=True)


def sampling(config, batches, repeat: int) -> None:
    student = build.student(config, NUM_CLASSES)
    quantizer = build.tokenizer(config).structure.quantizer
    settings = decode.SamplingSettings()
    inputs = jax.ShapeDtypeStruct((1, student.offsets[-1] - student.offsets[1], student.latent_channels), jnp.float32)
    labels = jax.ShapeDtypeStruct((1,), jnp.int32)
    params = random_like(jax.eval_shape(student.init, jax.random.key(0), labels, inputs)["params"])
    latents = [jax.ShapeDtypeStruct((1, p, p, student.latent_channels), jnp.float32) for p in student.grid_sizes]
    quantizer_params = random_like(jax.eval_shape(
        lambda key, latents: quantizer.init(key, latents, method="quantize"), jax.random.key(0), latents)["params"])
    layers = decode.unstack(params)
    for batch in batches:
        labels = jnp.arange(batch, dtype=jnp.int32)
        report(f"sample, batch {batch}", lambda params, layers, quantizer_params, labels, keys: decode.sample(
            Bound(student, params), Bound(quantizer, quantizer_params), labels, keys, settings, layers=layers),
            (params, layers, quantizer_params, labels, decode.sample_keys(0, labels)), repeat)


def tokenizing(repeat: int) -> None:
    """Measures the tokenizing of both streams, as stage 2 needs it, for VAR's pyramid and the focus pyramid."""
    image = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 256, 256, 3)), jnp.float32)
    for argument in ("var", None):
        config = float32(d16.get_config(argument))
        tokenizer = build.tokenizer(config)
        params = abstract_random(tokenizer.init, jax.random.key(0))
        params["residual_std"] = jnp.ones(len(config.grid_sizes) - 1)
        report(f"tokenize, {argument or 'focus'}", tokenizer.encode, (params, image), repeat)


def training(student: str, repeat: int) -> None:
    """Measures one update on one sequence of tokens; recomputed blocks do not count as FLOPs."""
    for teacher in ("off", "on"):
        config = float32(d16.get_config(f"architecture={student},teacher={teacher}"))
        task = build.generator_task(config, NUM_CLASSES)
        config.generator.model.remat = "none"
        plain = build.generator_task(config, NUM_CLASSES)
        state = jax.jit(task.init)(jax.random.key(0))
        frozen = abstract_random(task.tokenizer.init, jax.random.key(0))
        length, alias_length = task.student.offsets[-1], task.student.offsets[-2]
        batch = {"structure": jnp.zeros((1, length), jnp.int32), "alias": jnp.zeros((1, alias_length), jnp.int32),
                 "label": jnp.zeros((1,), jnp.int32)}
        report(f"train, {'student and teacher' if task.teacher.enabled else 'student'}", task.update,
               (state, frozen, batch, jax.random.key(0)), repeat, plain.update)


def float32(config):
    config.generator.model.dtype = config.tokenizer.model.dtype = "float32"
    return config


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", default=["sample"], choices=["sample", "tokenize", "train"])
    parser.add_argument("--student", default="var", choices=list(STUDENTS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    print("| what | compile s | s | TFLOP | product GFLOP/s | of the product's rate | GiB |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    if "sample" in given.what:
        sampling(float32(d16.get_config(f"architecture={given.student},var")), given.batches, given.repeat)
    if "tokenize" in given.what:
        tokenizing(given.repeat)
    if "train" in given.what:
        training(given.student, given.repeat)


if __name__ == "__main__":
    main()
