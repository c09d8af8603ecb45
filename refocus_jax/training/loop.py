"""The training loop of both stages. It trains a task, and knows nothing about models or metrics."""

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
from refocus_jax.runtime import bucket, memory, overview
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime.checkpoint import Checkpoints
from refocus_jax.runtime.mirror import Mirror
from refocus_jax.runtime.preemption import Preempted, Preemption
from refocus_jax.runtime.profile import Profile
from refocus_jax.runtime.progress import Phase, Progress
from refocus_jax.runtime.writer import Writer


class Task(Protocol):
    """What the loop trains. Its state has `params`, and `step`, which counts updates."""

    @property
    def name(self) -> str:
        """The name of the stage."""

    def init(self, key: jax.Array) -> Any:
        """Makes the first state."""

    def update(self, state: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple[Any, Mapping[str, jax.Array]]:
        """Makes one step, as a pure function; returns the new state and scalars for the log."""
        ...


class BatchIterator(Iterator[Any], Protocol):
    """An iterator over batches of numpy arrays, of which each process gets its part."""

    def close(self) -> Any:
        """Ends the iterator's processes and threads."""


class Batches(Protocol):
    """An endless sequence of examples in a fixed order; a position is a number of examples, for any batch size."""

    @property
    def batch_size(self) -> int:
        """The number of examples in a batch, over all processes."""

    def starting_at(self, example: int) -> BatchIterator:
        """Iterates over the batches that follow the first `example` examples."""
        ...


# evaluator(state, frozen) yields (name, value). A value is a number, a picture (h, w, 3) uint8, or a list of pictures,
# the frames of an animation.
Evaluator = Callable[[Any, Any], Iterable[tuple[str, Any]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How long a run trains, and how often it logs, evaluates and saves (it evaluates and saves also at the end).

    Attributes:
      steps: The total number of steps.
      log_every: The number of steps between two lines of metrics.
      evaluate_every: The number of steps between two evaluations.
      save_every: The number of steps between two checkpoints.
      keep: The number of latest checkpoints to keep.
      keep_every: The number of steps between two checkpoints that are kept for good, in addition; 0 keeps none.
      skip_nonfinite: The number of steps of one call that may be skipped because a loss or gradient is NaN or infinite;
        the next such step stops the run.
    """

    steps: int
    log_every: int = 100
    evaluate_every: int = 10_000
    save_every: int = 2_000
    keep: int = 2
    keep_every: int = 0
    skip_nonfinite: int = 0

    def __post_init__(self):
        for name in ("steps", "log_every", "evaluate_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number of at least 1")
        if self.skip_nonfinite < 0:
            raise ValueError(f"skip_nonfinite is {self.skip_nonfinite}; give 0 (stop at once) or more")
        if self.keep_every < 0:
            raise ValueError(f"keep_every is {self.keep_every}; give 0 (keep none for good) or more")

    def saves(self, step: int) -> bool:
        """Whether a checkpoint of this step is due."""
        return step % self.save_every == 0 or (self.keep_every > 0 and step % self.keep_every == 0)


def abstract_state(task: Task, mesh) -> Any:
    """Computes shapes, dtypes and shardings of the state, to initialize it and to restore checkpoints."""
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    return mesh_lib.abstract(shapes, mesh_lib.parameter_shardings(mesh, shapes))


def init_state(task: Task, key: jax.Array, mesh, abstract: Any) -> Any:
    """Initializes the task's first state directly on the devices of the mesh, sharded like the `abstract_state`."""
    # The program runs once. On a CPU, optimizing it takes several times as long as compiling and running it.
    options = {"xla_backend_optimization_level": 0} if mesh.devices.flat[0].platform == "cpu" else None
    return jax.jit(task.init, out_shardings=_shardings(abstract), compiler_options=options)(key)


def _first_or_latest(task: Task, checkpoints: Checkpoints, key: jax.Array, mesh, abstract: Any,
                     warm_start: Callable[[Any], Any] | None, resume_step: int) -> tuple[Any, int | None]:
    """Restores the state to go on from, with its step; or makes the first one, whose step is None."""
    start = checkpoints.starting_step(resume_step)
    if start is None:
        with Phase(f"{task.name}: initializing parameters"):
            state = init_state(task, key, mesh, abstract)
            return warm_start(state) if warm_start else state, None
    with Phase(f"{task.name}: restoring parameters"):
        if start == checkpoints.latest_step():
            state = checkpoints.restore(abstract)
            return state, checkpoints.latest_step()  # an earlier one if the latest was damaged
        state = checkpoints.restore(abstract, step=start)
        checkpoints.set_back(start)
        return state, start


def jit_update(task: Task, settings: LoopSettings, mesh, abstract: Any) -> Any:
    """Jits the step of the loop: (state, frozen, batch, key) -> (state, (metrics, whether they are finite))."""
    update = mesh_lib.on_mesh(mesh, _checked_update(task, skip=settings.skip_nonfinite > 0))
    return jax.jit(update, donate_argnums=0, out_shardings=(_shardings(abstract), mesh_lib.replicated(mesh)))


def _shardings(abstract: Any) -> Any:
    return jax.tree.map(lambda a: a.sharding, abstract)


def _evaluate(writer: Writer, step: int, results: Iterable[tuple[str, Any]]) -> None:
    """Passes an evaluator's results to the writer by their kind, and writes the numbers to evaluation.json too."""
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
    """A loss or a gradient is NaN or infinite; nothing of that step has been saved."""


def _checked_update(task: Task, skip: bool):
    """Adds to the task's update whether its metrics are finite; if not, `skip` keeps all of the state but `step`."""
    def update(state, frozen, batch, key):
        new, values = task.update(state, frozen, batch, key)
        finite = jnp.all(jnp.isfinite(jnp.stack([jnp.asarray(v, jnp.float32) for v in values.values()])))
        if skip:
            kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
            new = kept.replace(step=new.step)
        return new, (values, finite)
    return update


class _Metrics:
    """Passes the metrics of steps to the writer; those of a step are fetched while the next step runs."""

    def __init__(self, writer: Writer, settings: LoopSettings, step: int, share_of_peak: float | None):
        self._writer, self._settings, self._skipped = writer, settings, 0
        self._pending: tuple[Any, ...] | None = None
        self._share_of_peak = share_of_peak
        self.seconds: dict[str, float] = {}  # durations to write with the next line of metrics
        self.restart_clock(step)

    def restart_clock(self, step: int) -> None:
        self._logged, self._clock = step, time.perf_counter()

    def hold(self, step: int, batch_size: int, reported) -> None:
        self._pending = (step, batch_size, *reported)

    def flush(self) -> dict[str, float]:
        """Checks the metrics of the step that is held, if any; writes and returns them if they are due.

        Raises:
          NonFinite: They are not finite, and no more such steps may be skipped.
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
          directory: str, evaluator: Evaluator, warm_start: Callable[[Any], Any] | None = None, resume_step: int = -1,
          made_with: Any = None, mirror: Mirror | None = None, share_of_peak: float | None = None,
          profile_steps: tuple[int, ...] = ()) -> Any:
    """Trains until `settings.steps`, resuming from a checkpoint in `directory` if there is one.

    Writes metrics, pictures, evaluation.json, checkpoints and traces into `directory`.

    Args:
      task: What to train.
      settings: How long, and how often to log, evaluate and save.
      batches: The training examples. A resumed run continues with the next examples, even if the batch size changes.
      frozen: Parameters that `update` reads but does not change.
      key: The key of all random numbers. The first state and the steps get separate keys derived from it; every step
        folds its number into the latter.
      mesh: The mesh of devices.
      directory: The directory to write into.
      evaluator: Measures a state; see `Evaluator`.
      warm_start: A function that changes the first state of a run; it is not applied to a resumed run.
      resume_step: The step of the checkpoint to resume from; -1 for the latest. Checkpoints of later steps are renamed
        to `replaced_STEP`. A training that has been set back to this step once goes on from its latest checkpoint.
      made_with: A value for JSON that is stored in the record of every checkpoint.
      mirror: Where metrics and pictures are copied to; None for nowhere.
      share_of_peak: The fraction of the devices' peak FLOPs that one step per second uses, for the model FLOPs
        utilization "mfu"; None if it is not known.
      profile_steps: The first and the last step to trace, see `Profile`; empty traces none.

    Returns:
      The last state.

    Raises:
      FileNotFoundError: There is no checkpoint of `resume_step`.
      NonFinite: A loss or gradient is NaN or infinite.
      Preempted: The run was asked to stop, and has saved a checkpoint.
    """
    abstract = abstract_state(task, mesh)  # once, because it traces the whole of `init`
    update = jit_update(task, settings, mesh, abstract)
    first_key, key, frozen = mesh_lib.put_whole(
        (fold_in(key, "first state"), fold_in(key, "steps"), frozen), mesh_lib.replicated(mesh))
    began = time.perf_counter()
    with (Checkpoints(f"{directory}/checkpoints", keep=settings.keep, keep_every=settings.keep_every) as checkpoints,
          Preemption() as preemption):
        state, start = _first_or_latest(task, checkpoints, first_key, mesh, abstract, warm_start, resume_step)
        step = start or 0
        before = {} if start is None else checkpoints.record()
        examples = before["position"]["examples"] if before else 0
        resumed_from = before.get("resumed_from", -1) if resume_step == -1 else resume_step
        overview.announce(task.name, abstract.params, mesh, directory)
        with (closing(batches.starting_at(examples)) as iterator,
              Writer(directory, resume_step=-1 if start is None else start, mirror=mirror) as writer,
              Profile(task.name, profile_steps, step, settings.steps, directory) as profile,
              Progress(settings.steps, step, task.name) as progress):
            metrics = _Metrics(writer, settings, step, share_of_peak)
            metrics.seconds["restore"] = time.perf_counter() - began
            try:
                while True:
                    # The order is: evaluate, save, then read data and step. So a checkpoint's data position is the
                    # first batch that its state has not seen, and the metrics of its step are on disk before it.
                    last, due, stop = step >= settings.steps, step > (start or 0), preemption.requested(step)
                    evaluates = due and (last or step % settings.evaluate_every == 0)
                    saves = due and (last or stop or settings.saves(step))
                    if evaluates or saves or step + 1 not in profile.steps:
                        profile.stop(state)
                    if evaluates or saves:
                        metrics.flush()
                    if evaluates:
                        with progress.during("evaluating"):
                            _evaluate(writer, step, evaluator(state, frozen))
                        metrics.restart_clock(step)
                    if evaluates or saves:
                        bucket.publish(directory)
                    if saves:
                        saving = time.perf_counter()
                        checkpoints.save(step, state, {"position": {"examples": examples}, "made_with": made_with,
                                                       "resumed_from": resumed_from})
                        metrics.seconds["save"] = time.perf_counter() - saving
                    if last:
                        return state
                    if stop:
                        raise Preempted(f"{task.name} was asked to stop, and has saved step {step}; the same command "
                                        "resumes from there")
                    with profile.step(step + 1, state):
                        batch = mesh_lib.put_batch(mesh, next(iterator))
                        examples += batches.batch_size
                        with jax.transfer_guard("disallow"):  # a step transfers nothing between host and devices
                            state, reported = update(state, frozen, batch, key)
                    step += 1
                    shown = metrics.flush()
                    metrics.hold(step, jax.tree.leaves(batch)[0].shape[0], reported)
                    if step == (start or 0) + 1:
                        jax.block_until_ready(state)
                        memory.trim()  # what compiling the step has left
                        metrics.seconds["start_up"] = time.perf_counter() - began
                    progress.update(step, {"loss": shown["loss/total"]} if shown else {})
            except NonFinite as error:
                good = checkpoints.latest_step()
                saved = "nothing has been saved yet" if good is None else f"the last good checkpoint is of step {good}"
                raise NonFinite(f"{task.name}, {error}; {saved}. Lower the learning rate, or let up to n such steps be "
                                f"skipped: {task.name}.train.skip_nonfinite=n") from None
