"""Memory of this process and its devices: its peaks, what compilers leave behind, and Python's collector."""

import ctypes
import functools
import gc
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

# resource.getrusage would also count the parent's memory, which a process inherits when it is started.
_STATUS = Path("/proc/self/status")


def peaks() -> dict[str, int]:
    """Returns peak memory in bytes since the process began, as far as it is known.

    `process` is resident host memory of all threads of this process, without its data workers; it is known on Linux
    only. `device` is the memory of this process's fullest device; GPUs and TPUs report it, CPUs do not.
    """
    found = {}
    # Some sandboxes have the file without the line.
    if _STATUS.exists() and (peak := re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())):
        found["process"] = int(peak[1]) * 1024
    counted = [stats["peak_bytes_in_use"] for device in jax.local_devices()
               if (stats := device.memory_stats()) and "peak_bytes_in_use" in stats]
    if counted:
        found["device"] = max(counted)
    return found


def collect_less_often() -> None:
    """Makes Python's garbage collector start less often, and pass over all that is there already.

    For the start of a process. Tracing a program makes millions of objects, of which few are in cycles, and the
    collector takes a good part of that time (docs/measurements/speed.md, "Tracing").
    """
    gc.freeze()
    gc.set_threshold(100_000, 10, 10)


def trim() -> None:
    """Gives memory that has been freed back to the system.

    glibc keeps most of what a compilation has freed for later allocations (docs/measurements/speed.md, "Loading").
    Other C libraries are left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def trimmed(jitted: Any) -> Callable[..., Any]:
    """Makes a jitted function trim the memory after each call that had to compile."""

    @functools.wraps(jitted)
    def call(*args: Any) -> Any:
        programs = jitted._cache_size()
        result = jitted(*args)
        if jitted._cache_size() > programs:
            trim()
        return result

    return call
