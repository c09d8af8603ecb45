"""Digests of the content of files, computed once and remembered until the files change."""

import hashlib
import json
import time
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

from tqdm import tqdm

from refocus_jax.data import remembered
from refocus_jax.runtime.files import write_json


def of_file(path: Path) -> str:
    """Return the BLAKE2 digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def of_files(paths: Sequence[Path], memory: Path) -> list[str]:
    """Compute the BLAKE2 digest of each file's content; only for process 0.

    Args:
      paths: Paths of the files.
      memory: A JSON file with earlier results by path, each with the size and times that the file had then. Files that
        still have the same size and times are not read again; the time of the last change of status cannot be set back.

    Returns:
      The digests, in the order of `paths`.

    Raises:
      OSError: If a file cannot be read, or if `memory` cannot be written.
    """
    known = _recall(memory)

    def look(path: Path) -> tuple[str, list]:
        stamp, name = remembered.stamp(path.stat()), str(path.absolute())
        if name in known and known[name][:-1] == stamp:
            return name, known[name]
        return name, [*stamp, of_file(path)]

    began = time.time_ns()
    with ThreadPool() as pool:
        found = list(tqdm(pool.imap(look, paths, chunksize=16), "reading files", len(paths), leave=False, delay=3,
                          disable=None))
    new = {name: entry for name, entry in found if known.get(name) != entry and remembered.is_settled(entry, began)}
    if new:
        write_json(memory, known | new)
    return [digest for _, (*_, digest) in found]


def _recall(memory: Path) -> dict[str, list]:
    """Read earlier results; empty if the file is missing or damaged."""
    try:
        known = json.loads(memory.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and all(isinstance(v, list) and len(v) == 4 for v in known.values()) else {}
