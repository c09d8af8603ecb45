"""Memory in pages of 2 MiB, for training on a CPU, where XLA allocates its intermediate results again in every step.

With pages of 4 KiB, the kernel maps and clears up to a hundred thousand of them in each step of `tiny`, which takes
about a seventh of the time (docs/measurements/speed.md). glibc asks for larger pages only if an environment variable
says so before a program starts. On which devices it will run is not known then, so this is the same for all.
"""

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

_VARIABLE, _TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
# "always [madvise] never": the kernel gives large pages to programs that ask for them.
_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart() -> None:
    """Starts this program again with large pages, unless that is so already, or the system has none to ask for.

    Call it first: what the program has done so far is lost. The process stays the same, with its number and its parent.
    """
    wanted = environment(os.environ)
    if wanted is not None and sys.executable:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)


def environment(present: Mapping[str, str]) -> dict[str, str] | None:
    """Returns the environment to start again with; None if that would change nothing."""
    tunables = present.get(_VARIABLE, "")
    if _TUNABLE in tunables or platform.libc_ver()[0] != "glibc":
        return None
    if not _KERNEL.exists() or "[madvise]" not in _KERNEL.read_text():
        return None
    return {**present, _VARIABLE: ":".join(filter(None, [tunables, f"{_TUNABLE}=1"]))}
