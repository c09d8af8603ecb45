"""Checkpoints of the training state and of the position in the data: the only file that knows orbax."""

import os
from pathlib import Path
from typing import Any, Self

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util


class Checkpoints:
    """The checkpoints of one training stage, one sub-directory per step.

    The arrays are stored as nested dictionaries whose keys are the names of fields, keys and positions:
    a checkpoint does not depend on Python classes, and a part of it can be restored alone.
    All processes must call every method.

    Args:
      directory: made by the first `save`; merely reading never writes.
      keep: how many of the latest checkpoints remain.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 2):
        self._directory = Path(directory).absolute()  # orbax refuses relative paths
        self._manager = ocp.CheckpointManager(
            self._directory,
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(),
                "iterator": grain.checkpoint.CheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                create=False, preservation_policy=ocp.checkpoint_managers.LatestN(keep)
            ),
        )

    def save(self, step: int, state: Any, iterator: grain.DatasetIterator | None = None) -> None:
        """Starts to save `state` and the position of `iterator`, and returns before they are written.

        The checkpoint appears under its final name only when it is complete. The arrays may be donated and
        the iterator advanced as soon as this returns. An error while writing is raised by the next call.

        Args:
          step: must be later than the latest checkpoint's.
          state: pytree of jax arrays.
          iterator: this process's iterator over the training data.

        Raises:
          ValueError: `step` is not later than the latest checkpoint's.
        """
        latest = self.latest_step()
        if latest is not None and step <= latest:
            raise ValueError(
                f"Cannot save step {step}: {self._directory} already holds step {latest}. "
                "Resume from the latest step, or use another workdir."
            )
        items = {"state": ocp.args.PyTreeSave(traverse_util.unflatten_dict(_flatten(state)))}
        if iterator is not None:
            items["iterator"] = grain.checkpoint.CheckpointSave(iterator)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def latest_step(self) -> int | None:
        """The step of the latest complete checkpoint, or None. Waits for a save that is under way."""
        self.wait()
        return self._manager.latest_step()

    def restore(
        self,
        template: Any,
        iterator: grain.DatasetIterator | None = None,
        *,
        step: int | None = None,
        partial: bool = False,
    ) -> Any:
        """Reads a state, bit by bit as it was saved, onto the devices that `template` names.

        Args:
          template: pytree of `jax.ShapeDtypeStruct` with a sharding, or of jax arrays; the devices may
            differ from those that saved. Leaves without a sharding become numpy arrays.
          iterator: is moved to the saved position, in place.
          step: default: the latest.
          partial: the template may lack parts of the saved state, which are then not read
            (sampling needs no optimizer state).

        Returns:
          A pytree like `template`.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          ValueError: the checkpoint does not fit the template or the iterator.
        """
        step = self._existing_step(step)
        wanted = _flatten(template)
        self._check_fit(step, wanted, partial)
        if iterator is not None:
            self._restore_iterator(step, iterator)
        item = traverse_util.unflatten_dict(wanted)
        restore = ocp.args.PyTreeRestore(
            item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=partial
        )
        restored = self._manager.restore(step, args=ocp.args.Composite(state=restore))
        leaves = traverse_util.flatten_dict(restored.state)
        return jax.tree.unflatten(jax.tree.structure(template), [leaves[path] for path in wanted])

    def wait(self) -> None:
        """Blocks until the save under way is complete, and raises its error if it failed."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then stops the background threads."""
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
        steps = self._manager.all_steps()
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

    def _restore_iterator(self, step: int, iterator: grain.DatasetIterator) -> None:
        try:
            self._manager.restore(
                step, args=ocp.args.Composite(iterator=grain.checkpoint.CheckpointRestore(iterator))
            )
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"The checkpoint of step {step} in {self._directory} holds no position in the data for "
                f"process {jax.process_index()} of {jax.process_count()}. "
                "Resume with the data source and the number of processes that saved it."
            ) from error


def _flatten(tree: Any) -> dict[tuple[str, ...], Any]:
    """The leaves by path, in order. Classes and empty nodes (optax.EmptyState, None) leave no trace."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {tuple(jax.tree_util.keystr((key,), simple=True) for key in path): leaf for path, leaf in leaves}


def _shape_and_type(array: Any) -> str:
    return f"{np.dtype(array.dtype).name}{list(array.shape)}"
