"""Which files of a folder are images that can be read: each is decoded once, and remembered until it changes."""

import contextlib
import hashlib
import json
import logging
import os
import stat
import uuid
from collections.abc import Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

from tqdm import tqdm

from refocus_jax.data.images import decode_rgb

_FILE_NAME = ".refocus_manifest.json"
_VERSION = 1  # to be raised when `decode_rgb` begins to refuse what it has read
_TOLERATED_SHARE = 0.01
_LISTED = 10

# Size in bytes and time of modification in nanoseconds.
_Fingerprint = list[int]


def readable(root: Path, names: Sequence[str]) -> list[str]:
    """Those files that can be decoded, in the order given; the others are listed in a warning.

    The first time takes as long as it takes all cores to decode every file. What could be decoded is remembered by
    size and time of modification in `root/.refocus_manifest.json`, or in `~/.cache/refocus_jax` where root cannot be
    written to. What could not is tried anew each time. Processes on several hosts check the files each for itself.

    Args:
      root: the folder.
      names: of the files, relative to it.

    Raises:
      ValueError: more than 1 % of the files cannot be read.
    """
    places = (root / _FILE_NAME, _cache_file(root))
    known = _recall(places)

    def check(name: str) -> tuple[_Fingerprint | None, str]:
        """Its fingerprint if it can be decoded, or why not."""
        path = root / name
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # a pipe could be waited for forever
                raise ValueError(f"{path} is not a regular file")
            fingerprint = [status.st_size, status.st_mtime_ns]
            if known.get(name) != fingerprint:
                with path.open("rb") as file:
                    decode_rgb(file, str(path))
            return fingerprint, ""
        except (OSError, ValueError) as error:
            return None, str(error)

    good, problems = {}, []
    try:
        with ThreadPool() as pool:
            verdicts = pool.imap(check, names, chunksize=16)
            # The bar appears where there is much to decode.
            bar = tqdm(verdicts, f"checking the images in {root}", len(names), leave=False, delay=3, disable=None)
            for name, (fingerprint, problem) in zip(names, bar, strict=True):
                if fingerprint is None:
                    problems.append(problem)
                else:
                    good[name] = fingerprint
    finally:
        # Also where it was interrupted, so as to go on from there.
        if any(known.get(name) != fingerprint for name, fingerprint in good.items()):
            _remember(places, known | good)
    if problems:
        _report(root, problems, len(names))
    return list(good)


def _report(root: Path, problems: Sequence[str], count: int) -> None:
    listed = "\n  ".join([*problems[:_LISTED], *(["..."] if len(problems) > _LISTED else [])])
    found = f"data.source is a folder: of {count} image files in {root}, {len(problems)} cannot be read"
    if len(problems) > _TOLERATED_SHARE * count:
        raise ValueError(f"{found}, which is more than {_TOLERATED_SHARE:.0%}; repair or remove them:\n  {listed}")
    logging.warning("%s and will be skipped:\n  %s", found, listed)


def _cache_file(root: Path) -> Path:
    folder = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()
    return Path(os.path.expanduser("~/.cache/refocus_jax")) / f"{folder}.json"


def _recall(places: Sequence[Path]) -> dict[str, _Fingerprint]:
    """The content of the newest manifest; nothing if there is none or it is damaged."""
    written = [place for place in places if os.path.isfile(place)]
    if not written:
        return {}
    try:
        manifest = json.loads(max(written, key=os.path.getmtime).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    match manifest:
        case {"version": version, "files": dict(files)} if version == _VERSION:
            return files
    return {}


def _remember(places: Sequence[Path], files: Mapping[str, _Fingerprint]) -> None:
    """Writes the manifest to the first place that can be written to, atomically, whoever else is writing it."""
    content = json.dumps({"version": _VERSION, "files": files})
    for place in places:
        temporary = place.with_name(f"{place.name}.{uuid.uuid4().hex}.tmp")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(content)
            os.replace(temporary, place)
            return
        except OSError as error:
            problem = error
            # On a full disk it may have been begun; where it could not be, it is not there either.
            with contextlib.suppress(OSError):
                temporary.unlink()
    logging.warning("The check of the images cannot be remembered and will be repeated: %s", problem)
