"""Compiles a jitted program for devices that are not present, and measures its memory and collectives."""

import dataclasses
import functools
import math
import re
import time
from typing import Any

import jax

from refocus_jax.planning import collectives
from refocus_jax.planning.targets import GIB, Target


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """What a compiled program needs on one chip.

    Attributes:
      peak_bytes_per_chip: The peak memory; None if the compiler refused the program before it computed it.
      capacity_bytes_per_chip: The memory that the program may use.
      short_bytes_per_chip: The memory that is missing at least; 0 if the program fits.
      state_bytes_per_chip: The memory of arguments that stay on the devices from step to step.
      collectives: By kind, the number and bytes of collectives in one run; None if the program was refused.
      seconds: The time of tracing and compiling.
    """

    peak_bytes_per_chip: int | None
    capacity_bytes_per_chip: int
    short_bytes_per_chip: int
    state_bytes_per_chip: int
    collectives: dict[str, dict[str, float]] | None
    seconds: float

    @property
    def fits(self) -> bool:
        """Whether the program fits in the memory."""
        return self.short_bytes_per_chip == 0


def bytes_per_chip(tree: Any) -> int:
    """Computes the memory that a tree of shapes with shardings takes on one chip."""
    return sum(a.dtype.itemsize * math.prod(a.sharding.shard_shape(a.shape)) for a in jax.tree.leaves(tree))


# When the TPU compiler refuses a program, it says how much memory the program needs and may use.
_REFUSAL = re.compile(r"\(?([\d.]+)([KMGT])\)? exceeds available HBM \(([\d.]+)([KMGT])\)"
                      r"|Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm")
_UNIT = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}


def refusal(message: str) -> tuple[int, int] | None:
    """Reads needed and available bytes from the error of a compiler that refuses a program; None for other errors."""
    found = _REFUSAL.search(message)
    if not found:
        return None
    needed, needed_unit, there, there_unit = [group for group in found.groups() if group]
    return int(float(needed) * _UNIT[needed_unit]), int(float(there) * _UNIT[there_unit])


def compile_program(target: Target, jitted: Any, arguments: tuple, state: Any) -> Program:
    """Compiles a jitted function for a target's devices.

    Args:
      target: The machine.
      jitted: The jitted function.
      arguments: Its arguments, as shapes with shardings over the target's devices.
      state: Those of the arguments that stay on the devices from step to step.
    """
    began, capacity = time.perf_counter(), target.chip.capacity_bytes
    program = functools.partial(Program, capacity_bytes_per_chip=capacity, state_bytes_per_chip=bytes_per_chip(state))
    lowered = jitted.lower(*arguments)
    try:
        compiled = lowered.compile(target.compiler_options)
    except jax.errors.JaxRuntimeError as error:
        if (found := refusal(str(error))) is None:
            raise
        needed, there = found
        return program(peak_bytes_per_chip=None, short_bytes_per_chip=max(needed - there, 1), collectives=None,
                       seconds=time.perf_counter() - began)
    peak = compiled.memory_analysis().peak_memory_in_bytes
    return program(peak_bytes_per_chip=peak, short_bytes_per_chip=max(peak - capacity, 0),
                   collectives=collectives.count(compiled.as_text()), seconds=time.perf_counter() - began)
