"""Parts that measure speed: sampling, and the steps of both stages."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.accelerator.programs import Bench
from benchmarks.accelerator.report import Measurement
from benchmarks.timing import random_like

# Images per second of VAR's own code on an A800 in bfloat16, at batch 64, tokens only, by depth.
SAMPLING_ANCHORS = {16: 123, 20: 75, 24: 50}
TRAINING_ANCHOR = "VAR-d16, A100s: 74 images/s per GPU, 21.7 % of the peak"


def sample(bench: Bench) -> Iterator[tuple[str, Measurement]]:
    """Measures d16 at all batch sizes, first tokens and then images, and other depths at the first batch size."""
    networks, frozen = bench.networks, bench.networks.tokenizer_params()
    seconds, latents = {}, {}

    def tokens(depth, batch, params):
        labels = np.arange(batch, dtype=np.int32) % networks.num_classes
        row, (_, latents[batch]) = bench.measure(networks.sampler(depth), (params, frozen, labels, np.uint32(0)), batch)
        seconds[batch] = row["seconds"]
        return row | {"result": f"{row['images_per_second']:.4g} images/s",
                      "anchor": f"VAR-d{depth}, A800, batch 64: {SAMPLING_ANCHORS[depth]} images/s"}

    def images(batch):
        row, _ = bench.measure(networks.decoder(), (frozen, latents[batch]), batch)
        both = batch / (row["seconds"] + seconds[batch])
        return row | {"result": f"{both:.4g} images/s with their tokens, {row['images_per_second']:.4g} without",
                      "images_per_second_with_tokens": both}

    params, first = networks.student_params(16), bench.sample_batches[0]
    for batch in bench.sample_batches:
        yield f"d16, batch {batch}, tokens", functools.partial(tokens, 16, batch, params)
        yield f"d16, batch {batch}, images", functools.partial(images, batch)
    del params
    for depth in (20, 24):
        yield (f"d{depth}, batch {first}, tokens",
               lambda depth=depth: tokens(depth, first, networks.student_params(depth)))


def _step(bench: Bench, task, plain, frozen: Any, batch: Any) -> dict[str, Any]:
    """Measures a step; `plain` is the task of the same networks without recomputation."""
    size = len(next(iter(batch.values())))
    arguments = bench.networks.state(task), frozen, batch, jax.random.key(0)
    row, values = bench.measure(task.update, arguments, size, plain.update, donated=True)
    return row | {"result": f"{row['images_per_second']:.4g} images/s, {1e3 * row['seconds']:.4g} ms a step of {size}",
                  "loss": float(values["loss/total"])}


def train(bench: Bench) -> Iterator[tuple[str, Measurement]]:
    """Measures stage 2 with its teacher; d16 also without, as the public anchor is."""
    networks, frozen = bench.networks, bench.networks.tokenizer_params()

    def fastest(depth, teacher=True):
        task, plain = (n.generator_task(depth, teacher) for n in (networks, networks.plain))
        return bench.search(lambda batch: _step(bench, task, plain, frozen, networks.tokens(batch)),
                            *bench.train_batches)

    yield "d16", lambda: fastest(16) | {"anchor": TRAINING_ANCHOR}
    yield "d16 without a teacher", lambda: fastest(16, teacher=False) | {"anchor": TRAINING_ANCHOR}
    yield "d12", lambda: fastest(12)
    yield "d24", lambda: fastest(24)


def stage1(bench: Bench) -> Iterator[tuple[str, Measurement]]:
    """Measures stage 1 when the adversarial loss has begun."""
    networks, batch = bench.networks, bench.stage1_batch

    def step(grids):
        task, plain = (n.tokenizer_task(grids) for n in (networks, networks.plain))
        frozen = task.frozen_shapes and random_like(task.frozen_shapes)
        return bench.search(lambda batch: _step(bench, task, plain, frozen, {"image": networks.images(batch)}),
                            batch, batch)

    for grids in ("var10", "k4"):
        yield grids, functools.partial(step, grids)
