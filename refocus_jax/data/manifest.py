"""Check which files of a folder can be read as images; results are remembered until a file changes."""

import hashlib
import stat
import time
from collections.abc import Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from refocus_jax.data import folders, notices, remembered
from refocus_jax.data.images import SixteenBits, sixteen_bits

_FILE_NAME = f"{folders.OWN_PREFIX}manifest.json"
_VERSION = 2  # increase it when `decode_rgb` begins to refuse files that it accepted before
_LISTED = 10  # how many problems a message lists


class Entry(NamedTuple):
    """The facts known about a file that can be read.

    Attributes:
      stamp: Size and times of change, see `remembered.stamp`.
      digest: BLAKE2 of its bytes.
      sixteen_bits: Range of 16-bit values, see `images.sixteen_bits`; None for other images.
    """

    stamp: list[int]
    digest: str
    sixteen_bits: SixteenBits | None


def check(root: Path, names: Sequence[str], left_out: Mapping[str, Sequence[str]] | None = None,
          max_unreadable: float = 0.01) -> dict[str, Entry]:
    """Find the files that can be decoded; the others are listed in a warning.

    The first check decodes every file, on all cores. Files that could be decoded are remembered by `remembered.stamp`
    in `root/.refocus_manifest.json`, or in `~/.cache/refocus_jax` if root is not writable. Files that could not be
    decoded, or have just been written, are checked again each time. With several hosts, every process checks the files
    itself.

    Args:
      root: The folder.
      names: Names of the files, relative to `root`.
      left_out: Other entries of the folder, by the reason; they are listed in the manifest.
      max_unreadable: Share of the files that may be skipped; a single one may always be skipped.

    Returns:
      What is known about each readable file, in the order given.

    Raises:
      ValueError: If more of the files cannot be read.
    """
    places = (root / _FILE_NAME, remembered.at_home(root))
    known = remembered.recall(places, _VERSION)
    entries = _entries(known.get("files"))

    def look(name: str) -> tuple[Entry | None, str]:
        """Return what is known about a file, or why it cannot be read."""
        path = root / name
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # a pipe could be waited for forever
                raise ValueError(f"{folders.shown(str(path))} is not a regular file")
            stamp = remembered.stamp(status)
            entry = entries.get(name)
            return entry if entry and entry.stamp == stamp else _decoded(path, stamp), ""
        except (OSError, ValueError) as error:
            return None, folders.shown(str(error))

    began = time.time_ns()
    good: dict[str, Entry] = {}
    problems: dict[str, str] = {}
    try:
        with ThreadPool() as pool:
            verdicts = pool.imap(look, names, chunksize=16)
            # The bar appears only if decoding takes more than three seconds.
            bar = tqdm(verdicts, f"checking the images in {root}", len(names), leave=False, delay=3, disable=None)
            for name, (entry, problem) in zip(names, bar, strict=True):
                if entry is None:
                    problems[name] = problem
                else:
                    good[name] = entry
    finally:
        # Also after an interruption, so that the next check continues there.
        listed = {"left_out": dict(left_out or {}), "unreadable": problems}
        new = {name: entry for name, entry in good.items()
               if entries.get(name) != entry and remembered.is_settled(entry.stamp, began)}
        if new or any(known.get(part) != content for part, content in listed.items()):
            remembered.keep(places, _VERSION, {"files": entries | new} | listed)
    if problems:
        judge(f"data.source is a folder: of {len(names)} image files in {root}", list(problems.values()), len(names),
              max_unreadable)
    return good


def _decoded(path: Path, stamp: list[int]) -> Entry:
    with path.open("rb") as file:
        found = sixteen_bits(file, folders.shown(str(path)))
        file.seek(0)
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    return Entry(stamp, digest, found)


def _entries(files: Any) -> dict[str, Entry]:
    """Return the well-formed entries of a manifest."""
    entries = {}
    for name, value in files.items() if isinstance(files, dict) else ():
        match value:
            case [list(stamp), str(digest), None]:
                entries[name] = Entry(stamp, digest, None)
            case [list(stamp), str(digest), [int(largest), bool(colour)]]:
                entries[name] = Entry(stamp, digest, SixteenBits(largest, colour))
    return entries


def judge(place: str, problems: Sequence[str], count: int, max_unreadable: float) -> None:
    """List images that cannot be read, in a warning.

    Args:
      place: The beginning of the message: where the images are, and how many.
      problems: What is wrong with each of those that cannot be read; at least one.
      count: Number of all images.
      max_unreadable: Share of the images that may be skipped; a single one may always be skipped.

    Raises:
      ValueError: If more of the images cannot be read.
    """
    listed = "\n  ".join([*problems[:_LISTED], *(["..."] if len(problems) > _LISTED else [])])
    found = f"{place}, {len(problems)} cannot be read"
    if len(problems) > max(1, max_unreadable * count):
        raise ValueError(f"{found}, more than the share data.max_unreadable={max_unreadable:g}; repair or remove "
                         f"them:\n  {listed}")
    notices.say(f"{found} and will be skipped:\n  {listed}")
