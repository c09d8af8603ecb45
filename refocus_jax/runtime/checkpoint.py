"""Checkpoints of the training state and of what belongs to it: the only file that knows orbax."""

import copy
import hashlib
import json
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from refocus_jax.runtime import lease

_DIGESTS = "digests.json"  # of every file of a checkpoint, beside them


class Checkpoints:
    """The checkpoints of one training stage, one sub-directory per step.

    The arrays are stored as nested dictionaries whose keys are the names of fields, keys and positions:
    a checkpoint does not depend on Python classes, and a part of it can be restored alone.
    Its files' digests are written as soon as it is complete: one that has changed since is damaged, is named in
    a warning, and counts no longer. All processes must call every method.

    Args:
      directory: made by the first `save`; merely reading never writes.
      keep: how many of the latest checkpoints remain.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 2):
        self._directory = Path(directory).absolute()  # orbax refuses relative paths
        self._saving: int | None = None
        self._sealing, self._give_up = None, threading.Event()
        self._sound: dict[int, bool] = {}
        self._manager = ocp.CheckpointManager(
            self._directory,
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(),
                "record": ocp.JsonCheckpointHandler("record.json"),
            },
            options=ocp.CheckpointManagerOptions(
                create=False,
                preservation_policy=ocp.checkpoint_managers.LatestN(keep),
            ),
        )

    def save(self, step: int, state: Any, record: Mapping[str, Any] | None = None) -> None:
        """Starts to save `state` and its `record`, and returns before they are written.

        The checkpoint appears under its final name only when it is complete. The arrays may be donated and
        the record changed as soon as this returns. An error while writing is raised by the next call.

        Args:
          step: must be later than the latest checkpoint's.
          state: pytree of jax arrays.
          record: what else belongs to the state, for JSON: the position in the data, what it was made with. That of
            process 0 is written.

        Raises:
          ValueError: `step` is not later than the latest checkpoint's.
        """
        lease.confirm()
        latest = self.latest_step()
        if latest is not None and step <= latest:
            raise ValueError(
                f"Cannot save step {step}: {self._directory} already holds step {latest}. "
                "Resume from the latest step, or use another workdir."
            )
        items = {"state": ocp.args.PyTreeSave(traverse_util.unflatten_dict(_flatten(state))),
                 "record": ocp.args.JsonSave(copy.deepcopy(dict(record or {})))}
        self._directory.mkdir(parents=True, exist_ok=True)
        self._saving = step
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        if jax.process_index() == 0:
            self._give_up.clear()
            self._sealing = threading.Thread(target=self._seal, args=(self._directory / str(step),))
            self._sealing.start()

    def latest_step(self) -> int | None:
        """The step of the latest complete and undamaged checkpoint, or None. Waits for a save that is under way."""
        return max(self._steps(), default=None)

    def _steps(self) -> list[int]:
        """Of all checkpoints that may be read; damaged ones are named."""
        self.wait()
        return [step for step in self._manager.all_steps() if self._is_sound(step)]

    def _is_sound(self, step: int) -> bool:
        if step not in self._sound:
            changed = _changed_files(self._directory / str(step))
            self._sound[step] = not changed
            if changed:
                logging.warning("The checkpoint of step %d in %s is damaged and will not be used: %s changed after it "
                                "was saved.", step, self._directory, ", ".join(changed))
        return self._sound[step]

    def set_damaged_aside(self) -> None:
        """Renames damaged checkpoints to `damaged_STEP`, so that their steps can be saved anew."""
        self._steps()
        damaged = [step for step, sound in self._sound.items() if not sound]
        if damaged and jax.process_index() == 0:
            for step in damaged:
                aside = self._directory / f"damaged_{step}"
                number = 1
                while aside.exists():
                    aside, number = self._directory / f"damaged_{step}_{number}", number + 1
                (self._directory / str(step)).rename(aside)
        for step in damaged:
            del self._sound[step]
        self._manager.reload()

    def _seal(self, directory: Path) -> None:
        """Writes the digests of a checkpoint as soon as it has its final name."""
        while not directory.exists():
            if self._give_up.wait(0.02):
                return
        temporary = directory / f"{_DIGESTS}.tmp"
        temporary.write_text(json.dumps(_digests(directory), indent=2))
        os.replace(temporary, directory / _DIGESTS)

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
          step: default: the latest.
          partial: the template may lack parts of the saved state, which are then not read
            (sampling needs no optimizer state).

        Returns:
          A pytree like `template`.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          ValueError: the checkpoint does not fit the template.
        """
        step = self._existing_step(step)
        wanted = _flatten(template)
        self._check_fit(step, wanted, partial)
        item = traverse_util.unflatten_dict(wanted)
        restore = ocp.args.PyTreeRestore(
            item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=partial
        )
        restored = self._manager.restore(step, args=ocp.args.Composite(state=restore))
        leaves = traverse_util.flatten_dict(restored.state)
        return jax.tree.unflatten(jax.tree.structure(template), [leaves[path] for path in wanted])

    def record(self, step: int | None = None) -> dict[str, Any]:
        """What was saved beside the state; the default is the latest checkpoint's.

        Raises:
          FileNotFoundError: there is no such checkpoint.
        """
        restored = self._manager.restore(self._existing_step(step), args=ocp.args.Composite(
            record=ocp.args.JsonRestore()))
        return restored.record

    def parts(self) -> set[str]:
        """Names of the uppermost parts of the latest checkpoint's state.

        Raises:
          FileNotFoundError: there is no checkpoint.
        """
        tree = self._manager.item_metadata(self._existing_step(None)).state.tree
        return {path[0] for path in traverse_util.flatten_dict(tree)}

    def wait(self) -> None:
        """Blocks until the save under way is complete.

        Raises:
          RuntimeError: it failed; what was saved before is untouched.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # whatever the writing threads ran into
            self._give_up.set()
            lease.confirm()  # another run that has taken the directory over cleans up in it
            raise self._save_failed() from error
        finally:
            if self._sealing is not None:
                self._sealing.join()

    def _save_failed(self) -> RuntimeError:
        before = [step for step in self._manager.all_steps() if step != self._saving]
        intact = f"that of step {max(before)} is intact" if before else "there is none before it"
        return RuntimeError(f"Saving the checkpoint of step {self._saving} in {self._directory} failed; {intact}. Make "
                            "room or mend the file system, and start again with the same command.")

    def close(self) -> None:
        """Waits, then stops the background threads.

        Raises:
          RuntimeError: the save under way failed.
        """
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _existing_step(self, step: int | None) -> int:
        latest = self.latest_step()
        if latest is None:
            raise FileNotFoundError(
                f"No checkpoint in {self._directory}. Train this stage first, or correct the workdir."
            )
        steps = self._steps()
        if step is not None and step not in steps:
            raise FileNotFoundError(
                f"No checkpoint of step {step} in {self._directory}. Choose one of {sorted(steps)}."
            )
        return latest if step is None else step

    def _check_fit(self, step: int, wanted: dict[tuple[str, ...], Any], partial: bool) -> None:
        """Orbax would cast, pad or cut arrays that differ from the template without a word."""
        saved = traverse_util.flatten_dict(self._manager.item_metadata(step).state.tree)
        problems = []
        for path in sorted(wanted.keys() | saved.keys()):
            name = "/".join(path)
            if path not in saved:
                problems.append(f"{name} is not in the checkpoint")
            elif path in wanted:
                found, expected = _shape_and_type(saved[path]), _shape_and_type(wanted[path])
                if found != expected:
                    problems.append(f"{name} is {found} in the checkpoint, expected {expected}")
            elif not partial:
                problems.append(f"{name} is only in the checkpoint")
        if problems:
            shown = problems[:8] + ["..."] * (len(problems) > 8)
            raise ValueError(
                f"The checkpoint of step {step} in {self._directory} does not fit:\n  " + "\n  ".join(shown)
                + "\nUse the config that the checkpoint was trained with, or another workdir."
            )


def _flatten(tree: Any) -> dict[tuple[str, ...], Any]:
    """The leaves by path, in order. Classes and empty nodes (optax.EmptyState, None) leave no trace."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {tuple(jax.tree_util.keystr((key,), simple=True) for key in path): leaf for path, leaf in leaves}


def _digests(directory: Path) -> dict[str, str]:
    """BLAKE2 of every file below a directory, by relative path."""
    digests = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not path.name.startswith(_DIGESTS):
            with path.open("rb") as file:
                digests[path.relative_to(directory).as_posix()] = hashlib.file_digest(file, "blake2b").hexdigest()
    return digests


def _changed_files(directory: Path) -> list[str]:
    """Files of a checkpoint that are not what its digests say; none if a kill came before they were written."""
    path = directory / _DIGESTS
    if not path.exists():
        return []
    try:
        expected = json.loads(path.read_text())
    except ValueError:
        return [_DIGESTS]
    found = _digests(directory)
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def _shape_and_type(array: Any) -> str:
    return f"{np.dtype(array.dtype).name}{list(array.shape)}"
