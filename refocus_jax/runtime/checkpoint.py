"""Checkpoints of the training state and its record. This is the only module that uses orbax."""

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from refocus_jax.runtime import bucket, lease, processes, seals

# In a bucket, a checkpoint counts if it has the first, which orbax writes last. A damaged one gets the second instead,
# which says why: to rename it would copy gigabytes.
_COMMITTED, _DAMAGED = "commit_success.txt", "damaged.txt"
_NO_ROOM = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


class Checkpoints:
    """The checkpoints of one training stage, one sub-directory per step. All processes must call every method.

    The arrays are stored as nested dictionaries whose keys are the names of fields, keys and positions. So a
    checkpoint does not depend on Python classes, and a part of it can be restored alone.

    A checkpoint is sealed before it gets its final name: it holds checksums of its arrays, computed on the devices that
    they are saved from, and a digest of these checksums and of its record. Restored arrays are compared with the
    checksums on the devices that they are restored to. So arrays and records come back exactly as they were saved, no
    file has to be read twice for the check, and files that do not belong to a checkpoint do no harm.

    A checkpoint that cannot be read, or that differs from its checksums, is damaged: a warning names it, and the
    previous checkpoint is read instead. Only the parts that are read are checked for damage.

    Args:
      directory: Made by the first `save`; reading alone never writes.
      keep: How many of the latest checkpoints remain.
      keep_every: Checkpoints of steps that are multiples of this remain too; 0 for none.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 2, keep_every: int = 0):
        self._directory = bucket.place(directory)  # absolute, as orbax wants it
        kept: list[Any] = [ocp.checkpoint_managers.LatestN(keep)]
        if keep_every:
            kept.append(ocp.checkpoint_managers.EveryNSteps(keep_every))
        self._kept = ocp.checkpoint_managers.AnyPreservationPolicy(kept)
        self._writer: ocp.CheckpointManager | None = None  # opened by the first `save`
        self._saving: int | None = None
        self._damaged: dict[int, str] = {}

    def save(self, step: int, state: Any, record: Mapping[str, Any] | None = None) -> None:
        """Starts to save `state` and its `record`, and returns before they are written.

        The checkpoint appears under its final name only when it is complete. The arrays may be donated and
        the record changed as soon as this returns. An error while writing is raised by the next call.
        The first save renames damaged checkpoints to `damaged_STEP`, so that their steps can be saved again. In a
        bucket it marks them instead, and a save of the same step replaces them, with a warning.

        Args:
          step: Must be later than the latest checkpoint's.
          state: Pytree of jax arrays.
          record: JSON values that belong to the state, such as the position in the data and the settings. Process 0's
            record is written.

        Raises:
          ValueError: `step` is not later than the latest checkpoint's.
          RuntimeError: The checkpoint cannot be written.
          LeaseError: This process has lost a lease, see `lease.confirm`.
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
            marker = self._directory / str(step) / _DAMAGED
            if jax.process_index() == 0 and marker.exists():
                logging.warning("%s is saved again, and orbax deletes the damaged one: %s", marker.parent,
                                marker.read_text())
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
                create=bucket.is_url(self._directory),  # where folders only exist as parts of names
                preservation_policy=self._kept,
                lightweight_initialize=True,  # reads no files of existing checkpoints
            ),
        )

    def _set_aside(self) -> None:
        """Sets aside what has a step's name but is not a sound checkpoint: it must neither count nor be deleted."""
        steps, damaged = self._steps(), {str(step): why for step, why in self._damaged.items()}
        sound = {str(step) for step in steps} - damaged.keys()
        for path in [path for path in self._paths() if path.name.isdecimal() and path.name not in sound]:
            if not bucket.is_url(path):
                _rename(path, f"damaged_{path.name}")
            elif path.name in damaged:  # after a kill in between it still counts, and is read once more
                (path / _DAMAGED).write_text(damaged[path.name])
                (path / _COMMITTED).unlink()
            elif int(path.name) not in steps and not (path / _DAMAGED).exists():
                path.rmtree()  # in a bucket, a save that was interrupted has its final name
        self._damaged = {}

    def latest_step(self) -> int | None:
        """The step of the latest checkpoint that is not known to be damaged, or None if there is no checkpoint.

        This only lists the directory: damage becomes known when a checkpoint is read. After `restore` this is the step
        that was restored. Waits for a save that is in progress.

        Raises:
          ValueError: All checkpoints are damaged.
          RuntimeError: The save in progress failed.
        """
        self.wait()
        latest = processes.agree(max(self._steps() - self._damaged.keys(), default=-1))
        if latest < 0 and self._damaged:
            why = "; ".join(f"step {step}: {problem}" for step, problem in sorted(self._damaged.items(), reverse=True))
            raise ValueError(f"All checkpoints in {self._directory} are damaged ({why}). Replace them with sound "
                             "copies; or, to train this stage from the beginning and lose its progress, rename or "
                             "remove that folder.")
        return None if latest < 0 else latest

    def starting_step(self, resume_step: int = -1) -> int | None:
        """Returns the step that a training goes on from, or None if there is no checkpoint.

        Args:
          resume_step: -1 for the latest. Any other step is returned itself, unless the latest checkpoint's record says
            `resumed_from` this step: then the training has been set back to it already, and goes on from the latest.

        Raises:
          FileNotFoundError: There is no checkpoint of `resume_step`.
          ValueError: It is damaged, or all checkpoints are.
        """
        latest = self.latest_step()
        if resume_step == -1 or (latest is not None and self.record().get("resumed_from") == resume_step):
            return self.latest_step()
        try:
            self.record(resume_step)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"resume_step is {resume_step}: {error}") from None
        return resume_step

    def set_back(self, step: int) -> None:
        """Renames the checkpoints of later steps to `replaced_STEP`, so that `step` is the latest one."""
        self.close()
        self._writer = None  # it remembers the later steps
        if jax.process_index() == 0:
            for later in sorted(self._steps()):
                if later > step:
                    _rename(self._directory / str(later), f"replaced_{later}")
        processes.barrier(f"set back {self._directory}")

    def _paths(self) -> list[Any]:
        return list(self._directory.iterdir()) if self._directory.is_dir() else []

    def _steps(self) -> set[int]:
        """Steps of all folders that hold any part of a checkpoint, sound or not."""
        return {int(path.name) for path in self._paths()
                if path.name.isdecimal() and path.name == str(int(path.name))
                and any((path / item).exists() for item in ("state", "record"))
                and (not bucket.is_url(path) or (path / _COMMITTED).exists())}

    def restore(
        self,
        template: Any,
        *,
        step: int | None = None,
        partial: bool = False,
    ) -> Any:
        """Reads a state, bit for bit as it was saved, onto the devices that `template` names.

        Args:
          template: Pytree of `jax.ShapeDtypeStruct` with a sharding, or of jax arrays; the devices may
            differ from those that saved. Leaves without a sharding become numpy arrays.
          step: Default: the latest that is not damaged; `latest_step` tells which one that was.
          partial: The template may lack parts of the saved state, which are then not read
            (sampling needs no optimizer state).

        Returns:
          A pytree like `template`.

        Raises:
          FileNotFoundError: There is no such checkpoint.
          ValueError: The checkpoint does not fit the template, or is damaged, or all checkpoints are damaged.
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
        """Raises the errors that `restore` would raise for the latest checkpoint, but reads none of its arrays."""
        self._fitting(_flatten(template), None, partial)

    def record(self, step: int | None = None) -> dict[str, Any]:
        """Returns the record that was saved with a state, by default that of the latest checkpoint, as in `restore`.

        Raises:
          FileNotFoundError: There is no such checkpoint.
          ValueError: The checkpoint is damaged, or all checkpoints are.
        """
        return self._sealed(step)[1]["record"]

    def parts(self) -> set[str]:
        """Returns the names of the top-level parts of the latest checkpoint's state.

        Raises:
          FileNotFoundError: There is no checkpoint.
          ValueError: All checkpoints are damaged.
        """
        return {name.partition("/")[0] for name in self._sealed(None)[1]["arrays"]}

    def wait(self) -> None:
        """Blocks until the save in progress is complete.

        Raises:
          RuntimeError: The save failed; earlier checkpoints are untouched.
          LeaseError: It failed because another run has taken the directory over.
        """
        if self._writer is None:
            return
        try:
            self._writer.wait_until_finished()
        except Exception as error:  # any error in the writing threads
            lease.confirm()  # another run that has taken the directory over removes unfinished files in it
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
        """Waits for the save in progress, then stops the background threads.

        Raises:
          RuntimeError: The save failed.
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
        """Returns a checkpoint's step and sealed content, by default of the latest one with an undamaged record."""
        while True:
            found = self._existing_step(step)
            sealed, problem = _attempt(seals.read, self._directory / str(found) / "record" / "record.json")
            if self._is_sound(found, problem):
                return found, sealed

    def _fitting(self, wanted: dict[tuple[str, ...], Any], step: int | None,
                 partial: bool) -> tuple[int, dict[str, Any]]:
        """As `_sealed`, but checks the fit first: orbax silently casts, pads or cuts arrays to fit the template."""
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
        """Whether no process has a problem with a checkpoint. If one has, all warn and treat it as damaged."""
        if processes.gather(np.array([not problem])).all():
            return True
        self._damaged[step] = problem or "another process cannot read it"
        logging.warning("The checkpoint of step %d in %s is damaged and will not be used: %s", step, self._directory,
                        self._damaged[step])
        return False

    def _read_arrays(self, step: int, wanted: dict[tuple[str, ...], Any], partial: bool) -> dict[str, Any]:
        """Reads arrays; returns them by name, in the order of `wanted`."""
        item = traverse_util.unflatten_dict(wanted)
        args = ocp.args.PyTreeRestore(item, restore_args=ocp.checkpoint_utils.construct_restore_args(item),
                                      partial_restore=partial)
        handlers = ocp.type_handlers.create_type_handler_registry((jax.Array, _Arrays()), (np.ndarray, _NumpyArrays()))
        # Only the handler, because a checkpointer would wait for all processes even after an error in one of them.
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=handlers)
        leaves = traverse_util.flatten_dict(handler.restore(self._directory / str(step) / "state", args=args))
        return _named({path: leaves[path] for path in wanted})


def _rename(path: Any, name: str) -> None:
    """Gives a folder another name, with a number if there is one of that name."""
    aside, number = path.with_name(name), 1
    while aside.exists():
        aside, number = path.with_name(f"{name}_{number}"), number + 1
    if bucket.is_url(path):
        bucket.move(str(path), str(aside))
    else:
        path.rename(aside)


def _flatten(tree: Any) -> dict[tuple[str, ...], Any]:
    """Returns the leaves by path, in order, without classes and empty nodes (optax.EmptyState, None)."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {tuple(jax.tree_util.keystr((key,), simple=True) for key in path): leaf for path, leaf in leaves}


def _named(leaves: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    return {"/".join(path): leaf for path, leaf in leaves.items()}


class _EndsItsReads:
    """Waits for all reads after an error in one of them.

    Orbax stops at the first array that it cannot read. The other reads would then end in errors that nobody can catch,
    and Python would print a traceback for each.
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
    """Calls `read`. Returns its result and "", or None and a description of the error."""
    try:
        return read(*args), ""
    except jax.errors.JaxRuntimeError:  # a device error, such as too little memory, says nothing about the files
        raise
    except Exception as error:  # any error that orbax, tensorstore, json or the file system raises on damage
        return None, _in_short(error)


def _in_short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]}{' ...' * (len(text) > 400)}"
