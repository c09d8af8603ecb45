"""Results of checks of large files, kept as JSON until the files change."""

import contextlib
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# A file that has changed this recently may change again within one tick of the file system's clock.
_UNSETTLED_NS = 2 * 10**9


def stamp(status: os.stat_result) -> list[int]:
    """Return a list that any change of a file alters: its size, and when its content and its status last changed.

    The size is in bytes and the times are in nanoseconds. The time of the status cannot be set back.
    """
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def is_settled(stamp: list[int], looked_ns: int) -> bool:
    """Return whether any change after the time of a check, in ns, would alter the stamp."""
    return stamp[2] < looked_ns - _UNSETTLED_NS


def at_home(path: Path) -> Path:
    """Return where to keep results about a file or folder that lies in a place without write access."""
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    return Path(os.path.expanduser("~/.cache/refocus_jax")) / f"{name}.json"


def recall(places: Sequence[Path], version: int) -> dict[str, Any]:
    """Return the results that were kept last; empty if they have another version, are damaged or do not exist."""
    written = [place for place in places if os.path.isfile(place)]
    if not written:
        return {}
    try:
        content = json.loads(max(written, key=os.path.getmtime).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) and content.get("version") == version else {}


def keep(places: Sequence[Path], version: int, content: dict[str, Any]) -> None:
    """Write to the first writable place, atomically, also if other processes write the same file."""
    text = json.dumps({"version": version} | content)
    for place in places:
        temporary = place.with_name(f"{place.name}.{uuid.uuid4().hex}.tmp")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text)
            os.replace(temporary, place)
            return
        except OSError as error:
            problem = error
            # On a full disk there may be a partial file; without write access there is none.
            with contextlib.suppress(OSError):
                temporary.unlink()
    logging.warning("The result of a check of files cannot be saved, so the check will be repeated: %s", problem)
