"""Compiles programs with an empty and a warm cache, and measures their time and memory."""

import contextlib
import dataclasses
import gc
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from benchmarks.accelerator.networks import Networks
from benchmarks.accelerator.report import one_line
from benchmarks.timing import compile_timed, typical_seconds
from refocus_jax.planning import flops, targets


@contextlib.contextmanager
def empty_cache() -> Iterator[Path]:
    """Makes JAX keep all compiled programs in a new folder while the block runs."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"jax_compilation_cache_dir": folder, "jax_enable_compilation_cache": True,
                    "jax_persistent_cache_min_compile_time_secs": 0.0, "jax_persistent_cache_min_entry_size_bytes": -1}
        before = {name: getattr(jax.config, name) for name in settings}
        try:
            for name, value in settings.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()
            yield Path(folder)
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()


@dataclasses.dataclass(frozen=True)
class Bench:
    """What the parts measure on.

    Attributes:
      device: The accelerator, which is JAX's default device.
      networks: The networks.
      cache: The folder of `empty_cache`.
      sample_batches: Batch sizes of sampling, that of the public anchor first.
      train_batches: The first and the largest batch size of stage 2.
      stage1_batch: The batch size of stage 1.
    """

    device: jax.Device
    networks: Networks
    cache: Path
    sample_batches: tuple[int, ...] = (64, 1, 256)
    train_batches: tuple[int, int] = (32, 512)
    stage1_batch: int = 16

    def measure(self, function: Callable, arguments: tuple, batch: int, plain: Callable | None = None,
                donated: bool = False) -> tuple[dict[str, Any], Any]:
        """Compiles a function twice, and measures its time and memory.

        Args:
          function: The function.
          arguments: Its arguments.
          batch: The number of images that it works on.
          plain: The same function without recomputation, to count its FLOPs; default the function itself.
          donated: Whether the first argument is donated. The function then returns the next one, and something else.

        Returns:
          A row of the report without its `result`, and what the function returned.

        Raises:
          FloatingPointError: It returned a number that is not finite.
        """
        arguments = jax.device_put(arguments, self.device)
        compiled, row = self._compile(function, arguments, donate_argnums=(0,) if donated else ())
        needed = flops.count(plain or function, *arguments)  # afterwards, because JAX remembers what it has traced
        (first, *rest), value = arguments, None

        def run():
            nonlocal first, value
            value = compiled(first, *rest)
            if donated:
                first, value = value
            return value

        before = self._memory("peak_bytes_in_use")
        seconds = typical_seconds(run)
        if not all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(value)):
            raise FloatingPointError("a result is not finite")
        after, peak = self._memory("peak_bytes_in_use"), targets.peak_flops(self.device.device_kind)
        # A device counts its peak since the process began: only a program that raises it is known to need so much.
        return row | {"batch": batch, "seconds": seconds, "images_per_second": batch / seconds, "flops": needed,
                      "share_of_peak": peak and needed / seconds / peak, "process_peak_bytes": after,
                      "counted_bytes": None if after == before else after}, value

    def _compile(self, function: Callable, arguments: tuple, **options) -> tuple[Any, dict[str, Any]]:
        kept = len(list(self.cache.iterdir()))
        compiled, seconds = compile_timed(function, arguments, **options)
        memory = compiled.memory_analysis()
        row = {"compile_seconds": seconds, "planned_bytes": memory.peak_memory_in_bytes,
               "argument_bytes": memory.argument_size_in_bytes}
        if len(list(self.cache.iterdir())) > kept:  # not every backend can keep programs
            jax.clear_caches()
            row["warm_compile_seconds"] = compile_timed(function, arguments, **options)[1]
        return compiled, row

    def _memory(self, name: str) -> int | None:
        return (self.device.memory_stats() or {}).get(name)

    def search(self, measure: Callable[[int], dict[str, Any]], batch: int, largest: int) -> dict[str, Any]:
        """Measures with several batch sizes, and returns the fastest row.

        They are the first one, or a quarter of it and so on if it does not fit, and the largest multiple by a power of
        two that fits as well. That one is estimated from the memory that the compiler counts for the first one; where
        the device's memory is not known, it is twice the first one.

        Args:
          measure: Makes a row for a batch size.
          batch: The first batch size.
          largest: No larger ones are tried.
        """
        rows: dict[int, dict[str, Any]] = {}
        errors: dict[int, str] = {}

        def try_in_turn(sizes):
            for size in sizes:
                gc.collect()  # a failed attempt may have left arrays
                try:
                    rows[size] = measure(size)
                    return
                except Exception as error:
                    errors[size] = one_line(error)

        try_in_turn(size for size in (batch, batch // 4, batch // 16) if size)
        if not rows:
            raise RuntimeError(f"no batch size works; {errors}")
        (first, row), = rows.items()
        limit, ratio = self._memory("bytes_limit"), 2.0
        if limit is not None:
            # Arguments are mostly parameters and optimizer state; the rest grows with the batch.
            state = row["argument_bytes"]
            ratio = max(1.0, (limit - state) / (row["planned_bytes"] - state))
        larger = (first * 2**doublings for doublings in range(int(math.log2(ratio)), 0, -1))
        try_in_turn(size for size in larger if size <= largest)
        return max(rows.values(), key=lambda row: row["images_per_second"]) | {
            "tried": {batch: row["images_per_second"] for batch, row in rows.items()} | errors}
