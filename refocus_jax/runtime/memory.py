"""How much memory this process and its devices have needed."""

import re
from pathlib import Path

import jax

# resource.getrusage would count the parent's memory too, as a process inherits it when it is started.
_STATUS = Path("/proc/self/status")


def peaks() -> dict[str, int]:
    """Peak bytes since the process began, as far as they are known.

    `process` is resident memory of the host, all threads of this process together, not its data workers; only Linux
    tells. `device` is that of this process's fullest device, where the platform counts: GPUs and TPUs do, CPUs do not.
    """
    found = {}
    if _STATUS.exists():
        found["process"] = int(re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())[1]) * 1024
    counted = [stats["peak_bytes_in_use"] for device in jax.local_devices()
               if (stats := device.memory_stats()) and "peak_bytes_in_use" in stats]
    if counted:
        found["device"] = max(counted)
    return found
