"""Which files of a folder are images that can be read: each is decoded once, and remembered until it changes."""

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
_VERSION = 2  # to be raised when `decode_rgb` begins to refuse what it has read
_LISTED = 10


class Entry(NamedTuple):
    """What is known of a file that can be read.

    Attributes:
      stamp: see `remembered.stamp`. digest: BLAKE2 of its bytes. sixteen_bits: see `images.sixteen_bits`.
    """

    stamp: list[int]
    digest: str
    sixteen_bits: SixteenBits | None


def check(root: Path, names: Sequence[str], left_out: Mapping[str, Sequence[str]] | None = None,
          max_unreadable: float = 0.01) -> dict[str, Entry]:
    """Those files that can be decoded, in the order given; the others are listed in a warning.

    The first time takes as long as it takes all cores to decode every file. What could be decoded is remembered by
    `remembered.stamp` in `root/.refocus_manifest.json`, or in `~/.cache/refocus_jax` where root cannot be written to.
    What could not, or has just been written, is looked at again each time. Processes on several hosts check the files
    each for itself.

    Args:
      root: the folder.
      names: of the files, relative to it.
      left_out: what else the folder holds, for the manifest to list.
      max_unreadable: share of the files that may be skipped; a single one always may.

    Raises:
      ValueError: more of the files cannot be read.
    """
    places = (root / _FILE_NAME, remembered.at_home(root))
    known = remembered.recall(places, _VERSION)
    entries = _entries(known.get("files"))

    def look(name: str) -> tuple[Entry | None, str]:
        """What is known of a file, or why it cannot be read."""
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

    began, good, problems = time.time_ns(), {}, {}
    try:
        with ThreadPool() as pool:
            verdicts = pool.imap(look, names, chunksize=16)
            # The bar appears where there is much to decode.
            bar = tqdm(verdicts, f"checking the images in {root}", len(names), leave=False, delay=3, disable=None)
            for name, (entry, problem) in zip(names, bar, strict=True):
                if entry is None:
                    problems[name] = problem
                else:
                    good[name] = entry
    finally:
        # Also where it was interrupted, so as to go on from there.
        listed = {"left_out": dict(left_out or {}), "unreadable": problems}
        new = {name: entry for name, entry in good.items()
               if entries.get(name) != entry and remembered.is_settled(entry.stamp, began)}
        if new or any(known.get(part) != content for part, content in listed.items()):
            remembered.keep(places, _VERSION, {"files": entries | new} | listed)
    if problems:
        _report(root, list(problems.values()), len(names), max_unreadable)
    return good


def _decoded(path: Path, stamp: list[int]) -> Entry:
    with path.open("rb") as file:
        found = sixteen_bits(file, folders.shown(str(path)))
        file.seek(0)
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    return Entry(stamp, digest, found)


def _entries(files: Any) -> dict[str, Entry]:
    """The entries of a manifest, as far as they are such."""
    entries = {}
    for name, value in files.items() if isinstance(files, dict) else ():
        match value:
            case [list(stamp), str(digest), None]:
                entries[name] = Entry(stamp, digest, None)
            case [list(stamp), str(digest), [int(largest), bool(colour)]]:
                entries[name] = Entry(stamp, digest, SixteenBits(largest, colour))
    return entries


def _report(root: Path, problems: Sequence[str], count: int, max_unreadable: float) -> None:
    listed = "\n  ".join([*problems[:_LISTED], *(["..."] if len(problems) > _LISTED else [])])
    found = f"data.source is a folder: of {count} image files in {root}, {len(problems)} cannot be read"
    if len(problems) > max(1, max_unreadable * count):
        raise ValueError(f"{found}, which is more than data.max_unreadable, {max_unreadable:g} of them; repair or "
                         f"remove them:\n  {listed}")
    notices.say(f"{found} and will be skipped:\n  {listed}")
