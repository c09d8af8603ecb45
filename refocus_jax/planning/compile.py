"""One jitted program, compiled for devices that are not here: memory, collectives, time."""

import dataclasses
import math
import re
import time
from typing import Any

import jax

from refocus_jax.planning import collectives
from refocus_jax.planning.targets import GIB, Target


@dataclasses.dataclass(frozen=True)
class Program:
    """What a jitted function needs of one chip.

    Attributes:
      peak_bytes_per_chip: most that is in use at once; None if the compiler refused the program before it knew.
      short_bytes_per_chip: by how much it does not fit, at least; 0 if it fits. state_bytes_per_chip: of what is there
      before and after. collectives: by kind, number and bytes of one run; None if it was refused. seconds: of tracing
      and compiling.
    """

    peak_bytes_per_chip: int | None
    capacity_bytes_per_chip: int
    short_bytes_per_chip: int
    state_bytes_per_chip: int
    collectives: dict[str, dict[str, float]] | None
    seconds: float

    @property
    def fits(self) -> bool:
        return self.short_bytes_per_chip == 0


def bytes_per_chip(tree: Any) -> int:
    """Of a tree of shapes with shardings."""
    return sum(a.dtype.itemsize * math.prod(a.sharding.shard_shape(a.shape)) for a in jax.tree.leaves(tree))


# The compiler of TPUs names what a program needs and has where it refuses one.
_REFUSAL = re.compile(r"\(?([\d.]+)([KMGT])\)? exceeds available HBM \(([\d.]+)([KMGT])\)"
                      r"|Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm")
_UNIT = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}


def refusal(message: str) -> tuple[int, int] | None:
    """Bytes needed and bytes there, from the error with which a compiler refuses a program; None if it is another."""
    found = _REFUSAL.search(message)
    if not found:
        return None
    needed, needed_unit, there, there_unit = [group for group in found.groups() if group]
    return int(float(needed) * _UNIT[needed_unit]), int(float(there) * _UNIT[there_unit])


def compile_program(target: Target, jitted: Any, arguments: tuple, state: Any) -> Program:
    """Compiles `jitted` for shapes with shardings over the target's devices.

    Args:
      state: those of the arguments that stay on the devices from step to step.
    """
    began, capacity, kept = time.perf_counter(), target.chip.capacity_bytes, bytes_per_chip(state)
    lowered = jitted.lower(*arguments)
    try:
        compiled = lowered.compile(target.compiler_options)
    except jax.errors.JaxRuntimeError as error:
        if (found := refusal(str(error))) is None:
            raise
        needed, there = found
        return Program(None, capacity, max(needed - there, 1), kept, None, time.perf_counter() - began)
    peak = compiled.memory_analysis().peak_memory_in_bytes
    return Program(peak, capacity, max(peak - capacity, 0), kept, collectives.count(compiled.as_text()),
                   time.perf_counter() - began)
