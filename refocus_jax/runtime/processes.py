"""Several processes that train one model: how they connect, agree, and notice that one has died."""

import contextlib
import glob
import hashlib
import importlib.util
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# If a process is silent for this long, the others give up and exit. Collective operations with a dead process may fail
# earlier.
HEARTBEAT_SECONDS = 60
# A process that waits for the others to start says so at this interval.
SAY_SECONDS = 10.0


def initialize(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None,
               heartbeat_seconds: int = HEARTBEAT_SECONDS) -> None:
    """Connects to the other processes, if there are any. Must be called before anything else asks jax for a device.

    Give all of the first three arguments or none. Without them, the processes of a Slurm step with several tasks and
    of a TPU pod find each other; anywhere else this is the only process.

    Args:
      coordinator: "HOST:PORT" of process 0.
      num_processes: Number of processes.
      process_id: Number of this process, from 0.
      heartbeat_seconds: A process that is silent for this long is considered dead, and the others exit with an error.

    Raises:
      ValueError: Some of the first three arguments are missing, or one is invalid.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    if any(value is not None for value in given.values()):
        if missing := [f"--{name}" for name, value in given.items() if value is None]:
            raise ValueError(f"{', '.join(missing)} not given; several processes need --coordinator=HOST:PORT of "
                             "process 0, --num_processes and --process_id (from 0), or none of them under Slurm and on "
                             "TPU pods")
        assert coordinator is not None and num_processes is not None and process_id is not None
        if not 0 <= process_id < num_processes:
            raise ValueError(f"--process_id is {process_id} of --num_processes {num_processes}; give 0 to "
                             f"{num_processes - 1}")
        host, _, port = coordinator.rpartition(":")
        if not (host and port.isascii() and port.isdecimal() and 1 <= int(port) < 2**16):
            raise ValueError(f"--coordinator is {coordinator!r}; give HOST:PORT, a free port (1 to 65535) of process "
                             "0's machine")
    elif not _found_by_jax():
        return
    if coordinator and process_id:
        waits_for = f"process {process_id} of {num_processes} waits for process 0 at {coordinator}"
    elif coordinator:
        assert num_processes is not None
        waits_for = f"process 0 waits at {coordinator} for the other {num_processes - 1}"
    else:
        waits_for = "waiting for the other processes that Slurm or the TPU pod has started"
    with _saying(waits_for):
        jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=heartbeat_seconds)


@contextlib.contextmanager
def _saying(waits_for: str) -> Iterator[None]:
    """Logs every ten seconds what the block is waiting for."""
    done, began = threading.Event(), time.monotonic()

    def say() -> None:
        while not done.wait(SAY_SECONDS):
            logging.warning("%s, for %.0f seconds so far. Check that all of them are running and that their machines "
                            "can reach each other.", waits_for, time.monotonic() - began)

    threading.Thread(target=say, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _found_by_jax() -> bool:
    """Whether this is one of several processes in an environment that jax knows."""
    if "SLURM_STEP_ID" in os.environ:
        return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1
    if hosts := os.environ.get("TPU_WORKER_HOSTNAMES"):
        return "," in hosts
    # A TPU machine of Google Cloud has a metadata server that tells jax about its pod; Colab's TPU has none.
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(chips and importlib.util.find_spec("libtpu")) and "COLAB_RELEASE_TAG" not in os.environ


def check_same(name: str, value: str) -> None:
    """Raises a ValueError on all processes unless they all have the same value."""
    digest = np.frombuffer(hashlib.blake2b(value.encode(), digest_size=8).digest(), np.uint32)
    digests = np.asarray(multihost_utils.process_allgather(digest)).reshape(-1, 2)
    differing = np.flatnonzero((digests != digests[0]).any(axis=1))
    if len(differing):
        raise ValueError(f"{name} is not the same in process 0 and in {', '.join(map(str, differing))}. Here it is "
                         f"{value[:500]}. All processes must see the same files: check which machine cannot read some "
                         "of them")


def agree(value: int) -> int:
    """Returns process 0's value on all processes."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def from_first(function: Callable[[], Any]) -> Any:
    """Calls a function in process 0 only, and returns its result, which must be JSON values, on all processes.

    If the function raises an error, process 0 raises it and the others raise a RuntimeError with the same message.
    """
    if jax.process_count() == 1:
        return function()
    told, error = b"", None
    if jax.process_index() == 0:
        try:
            told = json.dumps(function()).encode()
        except Exception as raised:
            told, error = (str(raised) or repr(raised)).encode(errors="replace"), raised
    failed, length = agree(error is not None), agree(len(told))
    told = bytes(multihost_utils.broadcast_one_to_all(np.frombuffer(told or bytes(length), np.uint8)))
    if failed:
        raise error or RuntimeError(told.decode())
    return json.loads(told)


def gather(rows: Any) -> Any:
    """Gathers rows from all processes, in order of the processes.

    Args:
      rows: A tree of numpy arrays, with the same number of rows in every process. jax cuts 64-bit numbers to 32 bits.
    """
    return multihost_utils.process_allgather(rows, tiled=True) if jax.process_count() > 1 else rows


def check_alone(mode: str) -> None:
    """Raises a ValueError if there are several processes, where a mode runs in one."""
    if jax.process_count() > 1:
        raise ValueError(f"--mode={mode} runs in one process, and this is one of {jax.process_count()}; start it on "
                         "one machine alone")


def barrier(name: str) -> None:
    """Waits until all processes have reached this point."""
    multihost_utils.sync_global_devices(name)
