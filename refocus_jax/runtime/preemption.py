"""Handles SIGTERM, which schedulers send shortly before preempting a machine."""

import os
import signal
import threading
from typing import Self

import jax
from jax.experimental import multihost_utils

EXIT_CODE = os.EX_TEMPFAIL  # 75, "try again": what a preempted run exits with


class Preempted(Exception):
    """The run was asked to stop and has saved its state."""


class Preemption:
    """Context in which SIGTERM makes `requested` return True instead of ending the process.

    If several processes train together, the signal may reach any of them, each at another step. jax's preemption
    service then finds the step after which all of them stop. Outside the main thread, where Python allows no signal
    handlers, SIGTERM keeps its usual effect.
    """

    _asked = False

    def requested(self, step: int) -> bool:
        """Whether to save and stop now. All processes must call this once per step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def _ask(self, *_) -> None:
        self._asked = True

    def __enter__(self) -> Self:
        self._before = None
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
