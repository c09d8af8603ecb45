"""Parts that compare results: float32 with the CPU's, bfloat16 with float32, implementations of attention."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator.networks import Networks
from benchmarks.accelerator.programs import Bench
from benchmarks.accelerator.report import Measurement
from benchmarks.timing import typical_seconds
from refocus_jax.models.attention import IMPLEMENTATIONS, attention, choose_implementation
from refocus_jax.models.tokenizer import to_unit_range

DEPTH, BATCH = 16, 2
ATTENTION_BATCH = 32
TOLERANCE = 1e-3


def run_on(device: jax.Device, function: Callable, *arguments) -> Any:
    """Runs a function on a device with the full precision of float32 products; returns numpy arrays."""
    with jax.default_device(device), jax.default_matmul_precision("highest"):
        return jax.device_get(jax.jit(function)(*jax.device_put(arguments, device)))


def equal(expected: Any, found: Any) -> dict[str, Any]:
    """A row that compares trees of tokens."""
    wrong, total = (sum(map(np.sum, leaves)) for leaves in (
        jax.tree.leaves(jax.tree.map(np.not_equal, expected, found)), jax.tree.leaves(jax.tree.map(np.size, found))))
    return {"result": f"{wrong} of {total} tokens differ", "passed": bool(wrong == 0)}


def close(expected: np.ndarray, found: np.ndarray) -> dict[str, Any]:
    """A row that compares numbers."""
    difference = np.abs(found - expected).max()
    return {"result": f"largest difference {difference:.1e} of {np.abs(expected).max():.1e}",
            "passed": bool(difference <= TOLERANCE)}  # False for NaN


def _functions(networks: Networks) -> dict[str, Callable]:
    """The functions whose results are compared."""
    task = networks.generator_task(DEPTH, teacher=False)

    def logits(params, frozen, batch):
        inputs = task.inputs(frozen, batch["structure"])
        return task.student_logits({"student": params}, batch["label"], inputs)[0]

    return {"logits": logits, "encode": task.tokenizer.encode, "decode": networks.decoder(),
            "sample": lambda *arguments: networks.sampler(DEPTH)(*arguments)[0]}


def _image(networks: Networks) -> np.ndarray:
    return np.asarray(to_unit_range(networks.images(BATCH)))


def float32(bench: Bench) -> Iterator[tuple[str, Measurement]]:
    """Compares results in float32 with those of the CPU."""
    networks, reference = dataclasses.replace(bench.networks, dtype="float32"), jax.devices("cpu")[0]
    params, frozen = jax.device_get((networks.student_params(DEPTH), networks.tokenizer_params()))
    functions, batch, side = _functions(networks), networks.tokens(BATCH), networks.var10[-1]
    latent = np.random.default_rng(0).standard_normal((BATCH, side, side, networks.latent_channels[0]), np.float32)

    def compare(how, name, *arguments):
        return how(*(run_on(device, functions[name], *arguments) for device in (reference, bench.device)))

    yield "logits", lambda: compare(close, "logits", params, frozen, batch)
    yield "tokens drawn", lambda: compare(equal, "sample", params, frozen, batch["label"], np.uint32(0))
    yield "tokens of images", lambda: compare(equal, "encode", frozen, _image(networks))
    yield "images of a latent", lambda: compare(close, "decode", frozen, latent)


def bfloat16(bench: Bench) -> Iterator[tuple[str, Measurement]]:
    """Compares results in bfloat16 with those in float32, on the device."""
    networks = bench.networks
    params, frozen = networks.student_params(DEPTH), networks.tokenizer_params()

    def both(name, *arguments):
        return (run_on(bench.device, _functions(dataclasses.replace(networks, dtype=dtype))[name], *arguments)
                for dtype in ("float32", "bfloat16"))

    def logits():
        exact, rounded = both("logits", params, frozen, networks.tokens(BATCH))
        same = np.mean(exact.argmax(-1) == rounded.argmax(-1))
        deviation = np.sqrt(np.mean(np.square(rounded - exact))) / np.std(exact)
        return {"result": f"off by {deviation:.1e} of their standard deviation (RMS), {same:.1%} of the largest are "
                          "the same", "relative_deviation": deviation, "same_largest": same}

    def tokens():
        exact, rounded = (np.concatenate([tokens.ravel() for tokens in structure])
                          for structure, _ in both("encode", frozen, _image(networks)))
        same = np.mean(exact == rounded)
        return {"result": f"{same:.1%} of the structure tokens are the same", "same_tokens": same}

    yield "logits", logits
    yield "tokens of images", tokens


def attention_scales(bench: Bench) -> Iterator[tuple[str, Measurement]]:
    """Times the implementations of attention on the queries of each scale, and compares them with float32."""
    student = bench.networks.student(DEPTH)
    shape = (ATTENTION_BATCH, student.num_heads, student.offsets[-1], bench.networks.head_dim)
    whole = [jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(0), 3)]
    chosen = []
    for name in IMPLEMENTATIONS:
        try:
            choose_implementation(name, bench.device.platform, bench.networks.head_dim, student.dtype)
            chosen.append(name)
        except ValueError as error:
            yield name, functools.partial(dict, skipped=str(error))

    def both_passes(implementation, offsets, ends, q, k, v):
        out, pull = jax.vjp(lambda *a: attention(*a, offsets, [(0, end) for end in ends], implementation), q, k, v)
        return out, pull(out)

    def compare(start, stop, offsets, ends):
        exact = whole[0][:, :, start:stop], *(a[:, :, :stop] for a in whole[1:])
        rounded = [a.astype(student.dtype) for a in exact]
        with jax.default_matmul_precision("highest"):
            expected = jax.jit(functools.partial(both_passes, "prefix", offsets, ends))(*exact)
        figures, said = {}, []
        for name in chosen:
            function = jax.jit(functools.partial(both_passes, name, offsets, ends))
            milliseconds = 1e3 * typical_seconds(lambda function=function: function(*rounded))
            difference = max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in zip(
                *map(jax.tree.leaves, (function(*rounded), expected)), strict=True))
            figures[name] = {"milliseconds": milliseconds, "relative_difference": difference}
            said.append(f"{name} {milliseconds:.3f} ms, off by {difference:.0e}")
        return {"result": "; ".join(said), "implementations": figures}

    offsets = student.offsets
    yield f"all {offsets[-1]} tokens", functools.partial(compare, 0, offsets[-1], offsets, offsets[1:])
    for side, start, stop in reversed(list(zip(student.grid_sizes, offsets[:-1], offsets[1:], strict=True))):
        yield f"{side} x {side} of {stop}", functools.partial(compare, start, stop, (0, stop - start), (stop,))
