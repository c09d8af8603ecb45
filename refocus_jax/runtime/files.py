"""Writes files so that they appear complete or not at all, with errors that name the file; reads and writes JSON."""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from refocus_jax.runtime import bucket, lease


def write_json(path: str | os.PathLike, content: dict[str, Any]) -> None:
    """Writes an indented JSON file, complete or not at all. Only process 0 writes."""
    if jax.process_index() == 0:
        with atomically(Path(path)) as temporary:
            temporary.write_text(json.dumps(valid(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """Yields a temporary path whose file replaces `path` if the block succeeds.

    Raises:
      OSError: The file cannot be written; the message is one line that names the path.
      LeaseError: This process has lost a lease, see `lease.confirm`.
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
    """Guards a block that writes to `path`: checks the leases first, and explains an OSError in one line.

    Args:
      path: The file or directory that is named in the error.
      size: The number of bytes needed in all, if known; it is also in the error.

    Raises:
      OSError: The block raised one. The message says what could not be written and why.
      LeaseError: This process has lost a lease, see `lease.confirm`.
    """
    lease.confirm()
    try:
        yield
    except OSError as error:
        needed = "" if size is None else f"; it needs {size} bytes"
        raise OSError(f"{path} cannot be written ({error.strerror or error}){needed}; make room, or correct its "
                      "permissions") from error


def read_json(path: str | os.PathLike, needed: Sequence[str] = ()) -> dict[str, Any] | None:
    """Reads the object in a JSON file; returns None if the file does not exist.

    Args:
      path: The file.
      needed: Names that the object must hold; "a.b" is b in a.

    Raises:
      ValueError: The file is damaged, does not hold an object, or lacks a needed name.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{type(content).__name__} instead of an object")
        if missing := set(needed) - _names(content):
            raise ValueError(f"it lacks {', '.join(name for name in needed if name in missing)}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:  # bytes that are not UTF-8 raise a ValueError too
        raise ValueError(f"{bucket.address(path)} is damaged ({error}); remove it, and the command that wrote it "
                         "makes it again") from error
    return content


def _names(content: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Names of all items in an object and in the objects inside it, such as "a" and "a.b"."""
    found = {f"{prefix}{name}" for name in content}
    return found.union(*(_names(value, f"{prefix}{name}.") for name, value in content.items()
                         if isinstance(value, dict)))


def valid(value: Any) -> Any:
    """Converts a value for JSON: non-finite floats become strings, and NumPy scalars become Python's."""
    if isinstance(value, dict):
        return {key: valid(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [valid(item) for item in value]
    if isinstance(value, np.generic):
        return valid(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
