"""Checkpoints of the training state and of what belongs to it: the only file that knows orbax."""

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from refocus_jax.runtime import lease, processes, seals

_NO_ROOM = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


class Checkpoints:
    """The checkpoints of one training stage, one sub-directory per step. All processes must call every method.

    The arrays are stored as nested dictionaries whose keys are the names of fields, keys and positions:
    a checkpoint does not depend on Python classes, and a part of it can be restored alone.

    A checkpoint is sealed before it gets its final name: it holds checksums of its arrays, taken on the devices that
    they are saved from, and a digest of these and of its record. What is restored is compared with them, on the devices
    that it is restored to. So no array and no record comes back other than it was saved, no file is read for that
    alone, and files that do not belong to a checkpoint do no harm. One that cannot be read, or reads otherwise, is
    damaged: it is named in a warning, and the one before is read instead. Damage is looked for in what is read only.

    Args:
      directory: made by the first `save`; merely reading never writes.
      keep: how many of the latest checkpoints remain.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 2):
        self._directory = Path(directory).absolute()  # orbax refuses relative paths
        self._keep = keep
        self._writer: ocp.CheckpointManager | None = None  # opened by the first `save`
        self._saving: int | None = None
        self._damaged: dict[int, str] = {}

    def save(self, step: int, state: Any, record: Mapping[str, Any] | None = None) -> None:
        """Starts to save `state` and its `record`, and returns before they are written.

        The checkpoint appears under its final name only when it is complete. The arrays may be donated and
        the record changed as soon as this returns. An error while writing is raised by the next call.
        The first save renames what is damaged to `damaged_STEP`, so that these steps can be saved again.

        Args:
          step: must be later than the latest checkpoint's.
          state: pytree of jax arrays.
          record: what else belongs to the state, for JSON: the position in the data, what it was made with. That of
            process 0 is written.

        Raises:
          ValueError: `step` is not later than the latest checkpoint's.
          RuntimeError: it cannot be written.
        """
        lease.confirm()
        latest = self.latest_step()
        if latest is not None and step <= latest:
            raise ValueError(
                f"Cannot save step {step}: {self._directory} already holds step {latest}. "
                "Resume from the latest step, or use another workdir."
            )
        arrays = _flatten(state)
        sealed = seals.seal(record or {}, _named(arrays))
        items = {"state": ocp.args.PyTreeSave(traverse_util.unflatten_dict(arrays)),
                 "record": ocp.args.JsonSave(sealed)}
        self._saving = step
        try:
            if self._writer is None:
                self._writer = self._open_writer()
            self._writer.save(step, args=ocp.args.Composite(**items), force=True)
        except Exception as error:
            raise self._save_failed(error) from error

    def _open_writer(self) -> ocp.CheckpointManager:
        self._directory.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            self._set_aside()
        processes.barrier(f"checkpoints of {self._directory}")
        return ocp.CheckpointManager(
            self._directory,
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(),
                "record": ocp.JsonCheckpointHandler("record.json"),
            },
            options=ocp.CheckpointManagerOptions(
                create=False,
                preservation_policy=ocp.checkpoint_managers.LatestN(self._keep),
                lightweight_initialize=True,  # reads no file of what lies there
            ),
        )

    def _set_aside(self) -> None:
        """Renames all that has a step's name and is not a sound checkpoint: it is in the way, but not to be deleted."""
        sound = {str(step) for step in self._steps() if step not in self._damaged}
        for path in [path for path in self._directory.iterdir() if path.name.isdecimal() and path.name not in sound]:
            aside, number = self._directory / f"damaged_{path.name}", 1
            while aside.exists():
                aside, number = self._directory / f"damaged_{path.name}_{number}", number + 1
            path.rename(aside)
        self._damaged = {}

    def latest_step(self) -> int | None:
        """The step of the latest checkpoint that is not known to be damaged, or None if there is no checkpoint.

        Costs a look at the directory: whether a checkpoint is damaged is known when it has been restored, after which
        this is the step that was. Waits for a save that is under way.

        Raises:
          ValueError: all checkpoints are damaged.
        """
        self.wait()
        latest = processes.agree(max(self._steps() - self._damaged.keys(), default=-1))
        if latest < 0 and self._damaged:
            why = "; ".join(f"step {step}: {problem}" for step, problem in sorted(self._damaged.items(), reverse=True))
            raise ValueError(f"All checkpoints in {self._directory} are damaged ({why}). Put sound copies in their "
                             "place; or, to start this stage over, which loses what was trained, rename or remove "
                             "that folder.")
        return None if latest < 0 else latest

    def _steps(self) -> set[int]:
        """Of all folders that hold anything of a checkpoint, sound or not."""
        if not self._directory.is_dir():
            return set()
        return {int(path.name) for path in self._directory.iterdir()
                if path.name.isdecimal() and path.name == str(int(path.name))
                and any((path / item).exists() for item in ("state", "record"))}

    def restore(
        self,
        template: Any,
        *,
        step: int | None = None,
        partial: bool = False,
    ) -> Any:
        """Reads a state, bit by bit as it was saved, onto the devices that `template` names.

        Args:
          template: pytree of `jax.ShapeDtypeStruct` with a sharding, or of jax arrays; the devices may
            differ from those that saved. Leaves without a sharding become numpy arrays.
          step: default: the latest that is not damaged; `latest_step` says which.
          partial: the template may lack parts of the saved state, which are then not read
            (sampling needs no optimizer state).

        Returns:
          A pytree like `template`.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          ValueError: the checkpoint does not fit the template; it, or all are damaged.
        """
        wanted = _flatten(template)
        while True:
            found, sealed = self._fitting(wanted, step, partial)
            arrays, problem = _attempt(self._read_arrays, found, wanted, partial)
            if self._is_sound(found, problem):
                changed = seals.changed(sealed, arrays)
                if self._is_sound(found, f"{', '.join(changed[:8])} changed after it was saved" if changed else ""):
                    return jax.tree.unflatten(jax.tree.structure(template), list(arrays.values()))

    def check_fit(self, template: Any, *, partial: bool = False) -> None:
        """Raises what `restore` would of the latest checkpoint, but reads none of its arrays."""
        self._fitting(_flatten(template), None, partial)

    def record(self, step: int | None = None) -> dict[str, Any]:
        """What was saved with the state; the default is the latest checkpoint's, which `restore` takes.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          ValueError: it, or all are damaged.
        """
        return self._sealed(step)[1]["record"]

    def parts(self) -> set[str]:
        """Names of the uppermost parts of the latest checkpoint's state.

        Raises:
          FileNotFoundError: there is no checkpoint.
          ValueError: all are damaged.
        """
        return {name.partition("/")[0] for name in self._sealed(None)[1]["arrays"]}

    def wait(self) -> None:
        """Blocks until the save under way is complete.

        Raises:
          RuntimeError: it failed; what was saved before is untouched.
        """
        if self._writer is None:
            return
        try:
            self._writer.wait_until_finished()
        except Exception as error:  # whatever the writing threads ran into
            lease.confirm()  # another run that has taken the directory over cleans up in it
            raise self._save_failed(error) from error

    def _save_failed(self, error: Exception) -> RuntimeError:
        steps, what = self._steps(), f"the checkpoint of step {self._saving} in {self._directory}"
        if self._saving in steps:
            said = f"After {what} was saved, removing an older one failed"
        else:
            said = f"Saving {what} failed; " + (f"that of step {max(steps)} is intact" if steps else
                                                "there is none before it")
        remedy = ("Make room or mend the file system" if any(text in str(error) for text in _NO_ROOM)
                  else "Correct what the error names")
        return RuntimeError(f"{said}. {remedy}, and start again with the same command. The error was: "
                            f"{_in_short(error)}")

    def close(self) -> None:
        """Waits, then stops the background threads.

        Raises:
          RuntimeError: the save under way failed.
        """
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _sealed(self, step: int | None) -> tuple[int, dict[str, Any]]:
        """The step of a checkpoint, by default of the latest whose record is not damaged, and what is sealed in it."""
        while True:
            found = self._existing_step(step)
            sealed, problem = _attempt(seals.read, self._directory / str(found) / "record" / "record.json")
            if self._is_sound(found, problem):
                return found, sealed

    def _fitting(self, wanted: dict[tuple[str, ...], Any], step: int | None,
                 partial: bool) -> tuple[int, dict[str, Any]]:
        """As `_sealed`. Orbax would cast, pad or cut arrays that differ from the template without a word."""
        found, sealed = self._sealed(step)
        problems = seals.misfits(sealed, _named(wanted), partial)
        if problems:
            shown = problems[:8] + ["..."] * (len(problems) > 8)
            raise ValueError(
                f"The checkpoint of step {found} in {self._directory} does not fit:\n  " + "\n  ".join(shown)
                + "\nUse the config that the checkpoint was trained with, or another workdir."
            )
        return found, sealed

    def _existing_step(self, step: int | None) -> int:
        latest = self.latest_step()
        if latest is None:
            raise FileNotFoundError(
                f"No checkpoint in {self._directory}. Train this stage first, or correct the workdir."
            )
        steps = self._steps() - self._damaged.keys()
        if step in self._damaged:
            raise ValueError(f"The checkpoint of step {step} in {self._directory} is damaged: {self._damaged[step]}. "
                             f"Choose one of {sorted(steps)}.")
        if step is not None and step not in steps:
            raise FileNotFoundError(
                f"No checkpoint of step {step} in {self._directory}. Choose one of {sorted(steps)}."
            )
        return latest if step is None else step

    def _is_sound(self, step: int, problem: str) -> bool:
        """Whether no process has a problem with a checkpoint. If one has, all say so, and it counts no longer."""
        if processes.gather(np.array([not problem])).all():
            return True
        self._damaged[step] = problem or "another process cannot read it"
        logging.warning("The checkpoint of step %d in %s is damaged and will not be used: %s", step, self._directory,
                        self._damaged[step])
        return False

    def _read_arrays(self, step: int, wanted: dict[tuple[str, ...], Any], partial: bool) -> dict[str, Any]:
        """By name, in the order of `wanted`."""
        item = traverse_util.unflatten_dict(wanted)
        args = ocp.args.PyTreeRestore(item, restore_args=ocp.checkpoint_utils.construct_restore_args(item),
                                      partial_restore=partial)
        handlers = ocp.type_handlers.create_type_handler_registry((jax.Array, _Arrays()), (np.ndarray, _NumpyArrays()))
        # The handler alone: a checkpointer would wait for all processes, also after an error in one of them.
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=handlers)
        leaves = traverse_util.flatten_dict(handler.restore(self._directory / str(step) / "state", args=args))
        return _named({path: leaves[path] for path in wanted})


def _flatten(tree: Any) -> dict[tuple[str, ...], Any]:
    """The leaves by path, in order. Classes and empty nodes (optax.EmptyState, None) leave no trace."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {tuple(jax.tree_util.keystr((key,), simple=True) for key in path): leaf for path, leaf in leaves}


def _named(leaves: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    return {"/".join(path): leaf for path, leaf in leaves.items()}


class _EndsItsReads:
    """Orbax ends at the first array that it cannot read. Reads that are under way would then end in errors that no one
    can catch, and Python would print the traceback of each.
    """

    async def deserialize(self, infos, args=None):
        before = asyncio.all_tasks()
        try:
            return await super().deserialize(infos, args)
        except Exception:
            if reads := asyncio.all_tasks() - before:
                await asyncio.wait(reads)
            raise


class _Arrays(_EndsItsReads, ocp.type_handlers.ArrayHandler):
    pass


class _NumpyArrays(_EndsItsReads, ocp.type_handlers.NumpyHandler):
    pass


def _attempt(read: Callable, *args: Any) -> tuple[Any, str]:
    """What `read` returns, or None, and what is wrong, or nothing."""
    try:
        return read(*args), ""
    except jax.errors.JaxRuntimeError:  # of devices, which may be out of memory: it says nothing about the files
        raise
    except Exception as error:  # whatever orbax, tensorstore, json and the file system make of damage
        return None, _in_short(error)


def _in_short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]}{' ...' * (len(text) > 400)}"
