"""The one training loop. A task is its only plug; the loop knows no metric and no model."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from refocus_jax.models.randomness import fold_in
from refocus_jax.runtime import memory, overview
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime.checkpoint import Checkpoints
from refocus_jax.runtime.preemption import Preempted, Preemption
from refocus_jax.runtime.progress import Progress
from refocus_jax.runtime.writer import Writer


class Task(Protocol):
    """What the loop trains. Its state has `params`, and `step`, which counts updates; `update` is pure."""

    name: str

    def init(self, key: jax.Array) -> Any: ...

    def update(self, state: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple[Any, Mapping[str, jax.Array]]: ...


class Batches(Protocol):
    """Examples in one order, endless; a position in them is a number of examples, whatever the batch."""

    batch_size: int  # of all processes together

    def starting_at(self, example: int) -> Iterator[Any]: ...  # of process-local numpy batches, with a `close()`


# evaluator(state, frozen) yields (name, value): a number, or a picture (h, w, 3) uint8, or frames, a list of such.
Evaluator = Callable[[Any, Any], Iterable[tuple[str, Any]]]


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """Steps of the run, and every how many of them to log, evaluate and save (evaluate and save also at the end).

    Attributes:
      keep: how many of the latest checkpoints remain. skip_nonfinite: how many steps of one call may be skipped
      because a loss or gradient is not finite; the next one stops the run.
    """

    steps: int
    log_every: int = 100
    evaluate_every: int = 10_000
    save_every: int = 2_000
    keep: int = 2
    skip_nonfinite: int = 0

    def __post_init__(self):
        for name in ("steps", "log_every", "evaluate_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number of at least 1")
        if self.skip_nonfinite < 0:
            raise ValueError(f"skip_nonfinite is {self.skip_nonfinite}; give 0 (stop at once) or more")


def abstract_state(task: Task, mesh) -> Any:
    """Shapes, dtypes and shardings of the state: what it is made in, and what a checkpoint is restored into."""
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    return mesh_lib.abstract(shapes, mesh_lib.parameter_shardings(mesh, shapes))


def init_state(task: Task, key: jax.Array, mesh) -> Any:
    """The task's first state, born on the devices of the mesh as it will lie there."""
    return jax.jit(task.init, out_shardings=_shardings(abstract_state(task, mesh)))(key)


def jit_update(task: Task, settings: LoopSettings, mesh) -> Any:
    """The step that the loop runs: (state, frozen, batch, key) to (state, (metrics, whether they are finite))."""
    update = mesh_lib.on_mesh(mesh, _checked_update(task, skip=settings.skip_nonfinite > 0))
    return jax.jit(update, donate_argnums=0, out_shardings=(
        _shardings(abstract_state(task, mesh)), mesh_lib.replicated(mesh)))


def _shardings(abstract: Any) -> Any:
    return jax.tree.map(lambda a: a.sharding, abstract)


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


class NonFinite(ArithmeticError):
    """A loss or a gradient is not a number; nothing of that step has been saved."""


def _checked_update(task: Task, skip: bool):
    """The task's update, and whether all that it reports is finite; if not, `skip` keeps the state but for its step."""
    def update(state, frozen, batch, key):
        new, values = task.update(state, frozen, batch, key)
        finite = jnp.all(jnp.isfinite(jnp.stack([jnp.asarray(v, jnp.float32) for v in values.values()])))
        if skip:
            kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
            new = kept.replace(step=new.step)
        return new, (values, finite)
    return update


class _Metrics:
    """What a step reports, on its way to the writer: it is fetched while a later step runs."""

    def __init__(self, writer: Writer, settings: LoopSettings, step: int, share_of_peak: float | None):
        self._writer, self._settings, self._pending, self._skipped = writer, settings, None, 0
        self._share_of_peak = share_of_peak
        self.seconds: dict[str, float] = {}  # written with the next line
        self.restart_clock(step)

    def restart_clock(self, step: int) -> None:
        self._logged, self._clock = step, time.perf_counter()

    def hold(self, step: int, batch_size: int, reported) -> None:
        self._pending = (step, batch_size, *reported)

    def flush(self) -> dict[str, float]:
        """Looks at the step that is held, if any; writes and returns its values if they are due.

        Raises:
          NonFinite: they are not finite, and no more such steps may be skipped.
        """
        if self._pending is None:
            return {}
        step, batch_size, values, finite = self._pending
        self._pending = None
        if not finite:
            self._skipped += 1
            bad = [name for name, value in jax.device_get(values).items() if not math.isfinite(value)]
            if self._skipped > self._settings.skip_nonfinite:
                raise NonFinite(f"step {step}: not finite: {', '.join(bad)}")
        if step % self._settings.log_every:
            return {}
        values = {name: float(value) for name, value in jax.device_get(values).items()}
        elapsed = time.perf_counter() - self._clock
        values["images_per_second"] = batch_size * (step - self._logged) / elapsed
        if self._share_of_peak is not None:
            values["mfu"] = self._share_of_peak * (step - self._logged) / elapsed
        if self._settings.skip_nonfinite:
            values["skipped_steps"] = self._skipped
        self._writer.scalars(step, values | {f"seconds/{name}": value for name, value in self.seconds.items()}
                             | {f"peak_bytes/{name}": value for name, value in memory.peaks().items()})
        self.seconds = {}
        self.restart_clock(step)
        return values


def train(task: Task, settings: LoopSettings, batches: Batches, *, frozen: Any, key: jax.Array, mesh,
          directory: str, evaluator: Evaluator, warm_start: Callable[[Any], Any] | None = None,
          made_with: Any = None, share_of_peak: float | None = None) -> Any:
    """Trains until `settings.steps`, going on from the latest checkpoint in `directory` if there is one.

    Writes metrics, pictures, evaluation.json and checkpoints into `directory`.

    Args:
      batches: a run that goes on reads the examples that it has not seen, in whatever batches. frozen: parameters that
      `update` reads but does not change. key: of all randomness; the first state has one of its own, and every step
      folds its number into that of the steps. warm_start: applied to the first state of a run, not to one that is
      resumed. made_with: for JSON, stands in the record of every checkpoint. share_of_peak: what a step per second
      would be of the FLOPs that the devices can do, for the model FLOPs utilization "mfu"; None if it is not known.

    Returns:
      The last state.
    """
    update = jit_update(task, settings, mesh)
    first_key, key, frozen = mesh_lib.put_whole(
        (fold_in(key, "first state"), fold_in(key, "steps"), frozen), mesh_lib.replicated(mesh))
    began = time.perf_counter()
    with Checkpoints(f"{directory}/checkpoints", keep=settings.keep) as checkpoints, Preemption() as preemption:
        start = checkpoints.latest_step()
        if start is None:
            state = init_state(task, first_key, mesh)
            state = warm_start(state) if warm_start else state
        else:
            state = checkpoints.restore(abstract_state(task, mesh))
            start = checkpoints.latest_step()  # an earlier one if that was damaged
        step = start or 0
        examples = 0 if start is None else checkpoints.record()["position"]["examples"]
        with (closing(batches.starting_at(examples)) as iterator,
              Writer(directory, resume_step=-1 if start is None else start) as writer,
              Progress(settings.steps, step, task.name) as progress):
            overview.announce(task.name, abstract_state(task, mesh).params, mesh, directory)
            metrics = _Metrics(writer, settings, step, share_of_peak)
            metrics.seconds["restore"] = time.perf_counter() - began
            try:
                while True:
                    # The order: evaluate, save, then pull data and step. So a checkpoint's data position is the batch
                    # that its state has not seen, and its step's metrics are on disk before it.
                    last, due, stop = step >= settings.steps, step > (start or 0), preemption.requested(step)
                    if due and (last or step % settings.evaluate_every == 0):
                        metrics.flush()
                        _evaluate(writer, step, evaluator(state, frozen))
                        metrics.restart_clock(step)
                    if due and (last or stop or step % settings.save_every == 0):
                        metrics.flush()
                        saving = time.perf_counter()
                        checkpoints.save(step, state, {"position": {"examples": examples}, "made_with": made_with})
                        metrics.seconds["save"] = time.perf_counter() - saving
                    if last:
                        return state
                    if stop:
                        raise Preempted(f"{task.name} was asked to stop, and has saved step {step}; the same command "
                                        "goes on from there")
                    batch = mesh_lib.put_batch(mesh, next(iterator))
                    examples += batches.batch_size
                    with jax.transfer_guard("disallow"):  # nothing but the lines above and below talks to the device
                        state, reported = update(state, frozen, batch, key)
                    step += 1
                    shown = metrics.flush()
                    metrics.hold(step, jax.tree.leaves(batch)[0].shape[0], reported)
                    if step == (start or 0) + 1:
                        jax.block_until_ready(state)
                        metrics.seconds["start_up"] = time.perf_counter() - began
                    progress.update(step, {"loss": shown["loss/total"]} if shown else {})
            except NonFinite as error:
                good = checkpoints.latest_step()
                saved = "nothing has been saved yet" if good is None else f"the last good checkpoint is of step {good}"
                raise NonFinite(f"{task.name}, {error}; {saved}. Lower the learning rate, or let up to n such steps be "
                                f"skipped: {task.name}.train.skip_nonfinite=n") from None
