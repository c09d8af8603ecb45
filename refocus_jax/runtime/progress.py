"""Progress display of a run: a bar on a terminal, plain lines in a log."""

import sys
import time
from typing import Self, TextIO

import jax
from tqdm import tqdm


class Progress:
    """Shows step, values, rate and remaining time; only process 0 shows anything.

    On a terminal it shows one moving bar. Elsewhere it prints a line like
    `tokenizer 120/800  loss=0.123  4.1 steps/s  2:45 left` whenever `interval_seconds` have passed since the
    previous line, and for the last step. The rate is measured since the previous line.

    Args:
      total: The last step.
      initial: The step that the run starts or resumes from.
      description: Name of the stage.
      stream: Where to write (default: standard error).
      interval_seconds: Time between lines; a bar sets its own pace.
    """

    def __init__(
        self,
        total: int,
        initial: int,
        description: str,
        stream: TextIO | None = None,
        *,
        interval_seconds: float = 10.0,
    ):
        self._stream = sys.stderr if stream is None else stream
        self._total, self._description, self._interval = total, description, interval_seconds
        self._active = jax.process_index() == 0
        self._values: dict[str, str] = {}
        self._shown_step, self._shown_time = initial, time.monotonic()
        self._bar = None
        if self._active and self._stream.isatty():
            self._bar = tqdm(
                total=total,
                initial=initial,
                desc=description,
                file=self._stream,
                unit=" steps",
                dynamic_ncols=True,
            )

    def update(self, step: int, values: dict[str, float]) -> None:
        """Reports that `step` steps are done. The latest values stay in view until there are new ones."""
        self._values |= {name: f"{value:.4g}" for name, value in values.items()}
        if self._bar is not None:
            self._bar.set_postfix(self._values, refresh=False)
            self._bar.update(step - self._bar.n)
        elif self._active and step > self._shown_step:
            now = time.monotonic()
            if now - self._shown_time >= self._interval or step == self._total:
                self._write_line(step, now)

    def _write_line(self, step: int, now: float) -> None:
        seconds_per_step = max(now - self._shown_time, 1e-9) / (step - self._shown_step)
        parts = [f"{self._description} {step}/{self._total}"]
        if self._values:
            parts.append(" ".join(f"{name}={value}" for name, value in self._values.items()))
        parts += [_rate(seconds_per_step), f"{_duration((self._total - step) * seconds_per_step)} left"]
        print("  ".join(parts), file=self._stream, flush=True)
        self._shown_step, self._shown_time = step, now

    def close(self) -> None:
        """Ends the bar, if there is one."""
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


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
