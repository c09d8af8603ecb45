"""The one training loop. A task is its only plug; the loop knows no metric and no model."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime.checkpoint import Checkpoints
from refocus_jax.runtime.progress import Progress
from refocus_jax.runtime.writer import Writer


class Task(Protocol):
    """What the loop trains. `state.step` counts updates; `update` is pure and is jitted by the loop."""

    name: str

    def init(self, key: jax.Array) -> Any: ...

    def update(self, state: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple[Any, Mapping[str, jax.Array]]: ...


# evaluator(state, frozen) yields (name, value): a number, or a picture (h, w, 3) uint8, or frames, a list of such.
Evaluator = Callable[[Any, Any], Iterable[tuple[str, Any]]]


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """Steps of the run, and every how many of them to log, evaluate and save (evaluate and save also at the end)."""

    steps: int
    log_every: int = 50
    evaluate_every: int = 5000
    save_every: int = 1000
    keep: int = 2

    def __post_init__(self):
        for name in ("steps", "log_every", "evaluate_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number of at least 1")


def init_state(task: Task, key: jax.Array, mesh) -> Any:
    """The task's first state, made in place on the devices of the mesh."""
    abstract = jax.eval_shape(task.init, key)
    shardings = jax.tree.map(lambda _: mesh_lib.replicated(mesh), abstract)
    return jax.jit(task.init, out_shardings=shardings)(key)


def abstract_state(task: Task, key: jax.Array, mesh) -> Any:
    """Shapes, dtypes and shardings of the state: what a checkpoint is restored into."""
    sharding = mesh_lib.replicated(mesh)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding),
                        jax.eval_shape(task.init, key))


def _evaluate(writer: Writer, step: int, results: Iterable[tuple[str, Any]]) -> None:
    """Hands an evaluator's results to the writer by their kind; the numbers also stand in evaluation.json."""
    scalars = {}
    for name, value in results:
        if isinstance(value, list):
            writer.animation(name, value, milliseconds=700)
        elif np.ndim(value) == 3:
            writer.image(step, name, value)
        else:
            scalars[name] = float(value)
    writer.scalars(step, scalars)
    writer.json("evaluation", {"step": step, **scalars})


class _Metrics:
    """Scalars on their way to the writer: those of a step are fetched while a later one runs."""

    def __init__(self, writer: Writer, step: int):
        self._writer, self._pending = writer, None
        self.restart_clock(step)

    def restart_clock(self, step: int) -> None:
        self._logged, self._clock = step, time.perf_counter()

    def hold(self, step: int, batch_size: int, metrics) -> None:
        self._pending = (step, batch_size, metrics)

    def flush(self) -> dict[str, float]:
        """Writes what is held, if anything, and returns it."""
        if self._pending is None:
            return {}
        step, batch_size, metrics = self._pending
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        seconds = time.perf_counter() - self._clock
        values["images_per_second"] = batch_size * (step - self._logged) / seconds
        self._writer.scalars(step, values)
        self._pending = None
        self.restart_clock(step)
        return values


def train(task: Task, settings: LoopSettings, batches: Iterable, *, frozen: Any, key: jax.Array, mesh,
          directory: str, evaluator: Evaluator) -> Any:
    """Trains until `settings.steps`, going on from the latest checkpoint in `directory` if there is one.

    Writes metrics, pictures, evaluation.json and checkpoints into `directory`.

    Args:
      batches: a grain dataset of process-local numpy batches, endless. frozen: parameters that `update` reads but does
      not change. key: of all randomness; every step folds its own number into it.

    Returns:
      The last state.
    """
    iterator: Iterator = iter(batches)
    replicated = mesh_lib.replicated(mesh)
    update = jax.jit(task.update, donate_argnums=0, out_shardings=(replicated, replicated))
    key, frozen = jax.device_put((key, frozen), replicated)
    with Checkpoints(f"{directory}/checkpoints", keep=settings.keep) as checkpoints:
        start = checkpoints.latest_step()
        if start is None:
            state = init_state(task, key, mesh)
        else:
            state = checkpoints.restore(abstract_state(task, key, mesh), iterator)
        step = start or 0
        with (Writer(directory, resume_step=-1 if start is None else start) as writer,
              Progress(settings.steps, step, task.name) as progress):
            metrics = _Metrics(writer, step)
            while True:
                # The order: evaluate, save, then pull data and step. So a checkpoint's data position is the batch
                # that its state has not seen, and its step's metrics are on disk before it.
                last, due = step >= settings.steps, step > (start or 0)
                if due and (last or step % settings.evaluate_every == 0):
                    metrics.flush()
                    _evaluate(writer, step, evaluator(state, frozen))
                    metrics.restart_clock(step)
                if due and (last or step % settings.save_every == 0):
                    metrics.flush()
                    checkpoints.save(step, state, iterator)
                if last:
                    return state
                batch = mesh_lib.put_batch(mesh, next(iterator))
                with jax.transfer_guard("disallow"):  # nothing but the lines above and below talks to the device
                    state, values = update(state, frozen, batch, key)
                step += 1
                shown = metrics.flush()
                if step % settings.log_every == 0:
                    metrics.hold(step, jax.tree.leaves(batch)[0].shape[0], values)
                progress.update(step, {"loss": shown["loss/total"]} if shown else {})
