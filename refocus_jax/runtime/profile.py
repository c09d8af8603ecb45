"""Traces of chosen steps of training, for TensorBoard and Perfetto."""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any, Self

import jax


class Profile:
    """Context of a stage that traces some of its steps, without evaluations and checkpoints between them.

    The traces are in DIRECTORY/profile. A trace ends when `stop` is called, so a stage that does something else between
    its steps has several. Each is named after its first step and its process, because jax names files only by host.

    Args:
      name: The name of the stage, which is also the name of the steps in a trace.
      chosen: The first and the last step to trace; empty traces none.
      step: The step that the stage starts or resumes from.
      total: The last step of the stage.
      directory: The directory of the stage.

    Attributes:
      steps: The steps that are traced: those of `chosen` that the stage has not made yet.
    """

    def __init__(self, name: str, chosen: tuple[int, ...], step: int, total: int, directory: str):
        first, last = chosen or (0, 0)
        self.steps = range(max(first, step + 1), min(last, total) + 1)
        self._name, self._directory, self._running = name, os.path.join(directory, "profile"), False
        if chosen and not self.steps:
            logging.warning("profile.steps is %s, and %s is at step %d of %d: no step is traced", chosen, name, step,
                            total)

    @contextlib.contextmanager
    def step(self, number: int, state: Any) -> Iterator[None]:
        """Traces what is done inside as a step, if it is among `steps`; a trace begins when `state` is ready."""
        if number not in self.steps:
            yield
            return
        if not self._running:
            jax.block_until_ready(state)
            options = jax.profiler.ProfileOptions()
            options.session_id = f"from_step_{number}_process_{jax.process_index()}"
            jax.profiler.start_trace(self._directory, profiler_options=options)
            self._running = True
        with jax.profiler.StepTraceAnnotation(self._name, step_num=number):
            yield

    def stop(self, state: Any) -> None:
        """Ends the trace, if one is running, when `state` is ready."""
        if self._running:
            self._running = False
            try:
                jax.block_until_ready(state)
            finally:
                jax.profiler.stop_trace()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop(None)
