"""Handles SIGTERM, which schedulers send shortly before preempting a machine, and Ctrl-C."""

import os
import signal
import threading
from typing import Any, Self

import jax
from jax.experimental import multihost_utils

EXIT_CODE = os.EX_TEMPFAIL  # 75, "try again": what a preempted run exits with


class Preempted(Exception):
    """The run was asked to stop and has saved its state."""


class Preemption:
    """Context in which SIGTERM and Ctrl-C make `requested` return True instead of ending the process.

    A second Ctrl-C ends it at once. If several processes train together, SIGTERM may reach any of them, each at another
    step. jax's preemption service then finds the step after which all of them stop; Ctrl-C keeps its usual effect.
    Outside the main thread, where Python allows no signal handlers, so do both.
    """

    _asked = False

    def requested(self, step: int) -> bool:
        """Whether to save and stop now. All processes must call this once per step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def _ask(self, number: int, _) -> None:
        self._asked = True
        if number == signal.SIGINT:
            # Not by print, which must not be called while it is interrupted.
            os.write(2, b"\nSaving after this step; press Ctrl-C again to stop at once, without saving.\n")
            signal.signal(number, self._before[number])

    def __enter__(self) -> Self:
        self._before: dict[int, Any] = {}
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
