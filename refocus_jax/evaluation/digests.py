"""Digests of files' content, read once and remembered until the files change."""

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
    """BLAKE2 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def of_files(paths: Sequence[Path], memory: Path) -> list[str]:
    """BLAKE2 of each file's content, in the order given; for process 0 alone.

    Args:
      memory: a JSON file that holds, by path, what was found before, and the size and times that the file had then:
      those that still have them are not read again. Of the times, that of the change of status cannot be set back.

    Raises:
      OSError: a file cannot be read, or the memory not be written.
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
    """Nothing where there is none, or a damaged one."""
    try:
        known = json.loads(memory.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and all(isinstance(v, list) and len(v) == 4 for v in known.values()) else {}
