"""What was found out about large files, kept as JSON until they change."""

import contextlib
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# A file that has changed so recently may change again within one tick of the file system's clock.
_UNSETTLED_NS = 2 * 10**9


def stamp(status: os.stat_result) -> list[int]:
    """What no change of a file leaves as it is: its size in bytes, and when its content and its status last changed.

    Times are in nanoseconds. The last of them cannot be set back.
    """
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def is_settled(stamp: list[int], looked_ns: int) -> bool:
    """Whether no change after a look at the file, at a time in ns, can leave the stamp as it is."""
    return stamp[2] < looked_ns - _UNSETTLED_NS


def at_home(path: Path) -> Path:
    """Where to keep what is known of a file or folder whose own folder cannot be written to."""
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    return Path(os.path.expanduser("~/.cache/refocus_jax")) / f"{name}.json"


def recall(places: Sequence[Path], version: int) -> dict[str, Any]:
    """What was kept last; nothing if it is of another version, damaged, or not there."""
    written = [place for place in places if os.path.isfile(place)]
    if not written:
        return {}
    try:
        content = json.loads(max(written, key=os.path.getmtime).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) and content.get("version") == version else {}


def keep(places: Sequence[Path], version: int, content: dict[str, Any]) -> None:
    """Writes to the first place that can be written to, atomically, whoever else is writing it."""
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
            # On a full disk it may have been begun; where it could not be, it is not there either.
            with contextlib.suppress(OSError):
                temporary.unlink()
    logging.warning("A check of files cannot be remembered and will be repeated: %s", problem)
