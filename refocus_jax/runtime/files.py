"""Files that appear complete or not at all, and errors that name them: JSON, and whatever else a run writes."""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from refocus_jax.runtime import lease


def write_json(path: str | os.PathLike, content: dict[str, Any]) -> None:
    """Writes an indented JSON file, complete or not at all; only process 0 does."""
    if jax.process_index() == 0:
        with atomically(Path(path)) as temporary:
            temporary.write_text(json.dumps(valid(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """Yields a temporary path, whose file takes the place of `path` if the block succeeds.

    Raises:
      OSError: it cannot be written; in one line that names the path. LeaseError: see `lease.confirm`.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path, size: int | None = None) -> Iterator[None]:
    """What is written to `path` in the block: only by who may, and an OSError says in one line what could not be
    written, why, and how many bytes it needs in all.
    """
    lease.confirm()
    try:
        yield
    except OSError as error:
        needed = "" if size is None else f"; it needs {size} bytes"
        raise OSError(f"{path} cannot be written ({error.strerror or error}){needed}; make room, or correct its "
                      "permissions") from error


def read_json(path: str | os.PathLike, needed: Sequence[str] = ()) -> dict[str, Any] | None:
    """The object in a JSON file, None if the file is not there.

    Args:
      needed: what it must hold; "a.b" is b in a.

    Raises:
      ValueError: it is damaged, does not hold an object, or lacks what is needed.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{type(content).__name__} instead of an object")
        if missing := set(needed) - _names(content):
            raise ValueError(f"it lacks {', '.join(name for name in needed if name in missing)}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:  # also of bytes that are not UTF-8
        raise ValueError(f"{path} is damaged ({error}); remove it, and the command that wrote it makes it "
                         "again") from error
    return content


def _names(content: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Of all that an object holds, as "a" and "a.b"."""
    found = {f"{prefix}{name}" for name in content}
    return found.union(*(_names(value, f"{prefix}{name}.") for name, value in content.items()
                         if isinstance(value, dict)))


def valid(value: Any) -> Any:
    """`value` with non-finite floats as strings and NumPy scalars as Python's."""
    if isinstance(value, dict):
        return {key: valid(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [valid(item) for item in value]
    if isinstance(value, np.generic):
        return valid(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
