"""SIGTERM as a wish: machines that are taken away send it some seconds or minutes before."""

import os
import signal
import threading
from typing import Self

import jax
from jax.experimental import multihost_utils

EXIT_CODE = os.EX_TEMPFAIL  # 75, "try again": what a preempted run exits with


class Preempted(Exception):
    """The run was asked to stop, and has saved its state."""


class Preemption:
    """While it is entered, SIGTERM makes `requested` True instead of ending the process.

    Where several processes train together the signal may reach any of them, at any step of its own: jax's service for
    that finds the step after which all of them stop. Outside the main thread, where Python allows no signal handlers,
    nothing is changed.
    """

    _asked = False

    def requested(self, step: int) -> bool:
        """Whether to save and stop now. Must be asked once per step, by all processes."""
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
