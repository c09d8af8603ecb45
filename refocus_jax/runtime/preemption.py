"""SIGTERM as a wish: machines that are taken away send it some seconds or minutes before."""

import os
import signal
import threading
from typing import Self

EXIT_CODE = os.EX_TEMPFAIL  # 75, "try again": what a preempted run exits with


class Preempted(Exception):
    """The run was asked to stop, and has saved its state."""


class Preemption:
    """While it is entered, SIGTERM sets `requested` instead of ending the process.

    Outside the main thread, where Python allows no signal handlers, nothing is changed.
    """

    requested = False

    def _request(self, *_) -> None:
        self.requested = True

    def __enter__(self) -> Self:
        self._before = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
