"""Shows what a run is doing: phases with their seconds, and its steps as a bar on a terminal or as lines in a log."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Self, TextIO

import jax
from tqdm import tqdm

_SECONDS_OF_SILENCE = 1.0  # after which a phase shows that it has begun
_BAR = "{desc} |{bar}| {n_fmt}/{total_fmt}, {remaining} left, {rate_fmt}"


class Phase:
    """Context that says what is being done, and at the end how many seconds it took; only process 0 says anything.

    A phase that takes longer than a second shows that it goes on: on a terminal by counting the seconds, in a log by a
    line every `interval_seconds`.

    Args:
      what: What is being done, such as "tokenizer: evaluating".
      stream: Where to write (default: standard error).
      interval_seconds: Time between lines in a log.
    """

    def __init__(self, what: str, stream: TextIO | None = None, *, interval_seconds: float = 10.0):
        self._what, self._stream, self._interval = what, sys.stderr if stream is None else stream, interval_seconds
        self._began, self._over = time.monotonic(), threading.Event()
        self._thread: threading.Thread | None = None

    def _show(self) -> None:
        terminal, wait = self._stream.isatty(), _SECONDS_OF_SILENCE
        while not self._over.wait(wait):
            seconds = round(time.monotonic() - self._began)
            text = f"{self._what} ... {seconds} s" if seconds >= 2 else f"{self._what} ..."
            print(f"\r{text}" if terminal else text, end="" if terminal else "\n", file=self._stream, flush=True)
            wait = 1.0 if terminal else self._interval

    def end(self, completed: bool = True) -> None:
        """Ends the phase, and says how long it took if it has been completed."""
        self._over.set()
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        start = "\r\x1b[K" if self._stream.isatty() else ""  # replaces the line that counts the seconds
        if completed:
            print(f"{start}{self._what}: {_seconds(time.monotonic() - self._began)}", file=self._stream, flush=True)
        elif start:
            print(start, end="", file=self._stream, flush=True)

    def __enter__(self) -> Self:
        if jax.process_index() == 0:
            self._thread = threading.Thread(target=self._show, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        self.end(completed=kind is None)


class Progress:
    """Shows step, values, rate and remaining time; only process 0 shows anything.

    On a terminal it shows one moving bar. Elsewhere it prints a line like
    `tokenizer 120/800  loss=0.123  4.1 steps/s  2:45 left` whenever `interval_seconds` have passed since the
    previous line, and for the last step. The rate is measured since the previous line. Everything until the end of the
    first step, which is mostly compilation in training, is a phase of its own and does not count.

    Args:
      total: The last step.
      initial: The step that the run starts or resumes from.
      description: Name of the stage.
      stream: Where to write (default: standard error).
      first: What happens until the end of the first step.
      interval_seconds: Time between lines; a bar sets its own pace.
    """

    def __init__(
        self,
        total: int,
        initial: int,
        description: str,
        stream: TextIO | None = None,
        *,
        first: str = "compiling (can take minutes the first time)",
        interval_seconds: float = 10.0,
    ):
        self._stream = sys.stderr if stream is None else stream
        self._total, self._description, self._interval = total, description, interval_seconds
        self._active = jax.process_index() == 0
        self._values: dict[str, str] = {}
        self._shown_step, self._shown_time = initial, time.monotonic()
        self._bar: tqdm | None = None
        self._first: Phase | None = None
        if initial < total:
            self._first = Phase(f"{description}: {first}", self._stream,
                                interval_seconds=interval_seconds).__enter__()

    def update(self, step: int, values: dict[str, float]) -> None:
        """Reports that `step` steps are done. The latest values stay in view until there are new ones."""
        self._values |= {name: f"{value:.4g}" for name, value in values.items()}
        if self._first is not None:
            self._first.end()
            self._first, self._shown_step, self._shown_time = None, step, time.monotonic()
            if self._active and self._stream.isatty():
                self._bar = tqdm(desc=self._description, total=self._total, initial=step, file=self._stream,
                                 unit=" steps", dynamic_ncols=True, bar_format=_BAR)
        if self._bar is not None:
            self._bar.set_description_str(" ".join([self._description, *self._shown_values()]), refresh=False)
            self._bar.update(step - self._bar.n)
        elif self._active and step > self._shown_step:
            now = time.monotonic()
            if now - self._shown_time >= self._interval or step == self._total:
                self._write_line(step, now)

    @contextlib.contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Context that shows a phase between two steps; its time does not count."""
        if self._bar is not None:
            self._bar.clear()
        began = time.monotonic()
        with Phase(f"{self._description}: {what}", self._stream, interval_seconds=self._interval):
            yield
        spent = time.monotonic() - began
        self._shown_time += spent
        if self._bar is not None:
            self._bar.start_t += spent
            self._bar.last_print_t += spent
            self._bar.refresh()

    def _shown_values(self) -> list[str]:
        return [f"{name}={value}" for name, value in self._values.items()]

    def _write_line(self, step: int, now: float) -> None:
        seconds_per_step = max(now - self._shown_time, 1e-9) / (step - self._shown_step)
        parts = [f"{self._description} {step}/{self._total}"]
        if self._values:
            parts.append(" ".join(self._shown_values()))
        parts += [_rate(seconds_per_step), f"{_duration((self._total - step) * seconds_per_step)} left"]
        print("  ".join(parts), file=self._stream, flush=True)
        self._shown_step, self._shown_time = step, now

    def close(self) -> None:
        """Ends the bar, or the phase before the first step, if there is one."""
        if self._first is not None:
            self._first.end(completed=False)
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _rate(seconds_per_step: float) -> str:
    if seconds_per_step > 1:
        return f"{seconds_per_step:.1f} s/step"
    return f"{1 / seconds_per_step:.1f} steps/s"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else _duration(seconds) + " minutes"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
