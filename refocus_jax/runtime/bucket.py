"""Workdirs in a bucket of Google Cloud Storage, gs://BUCKET/PATH.

Objects in a bucket cannot be appended to, and renaming one copies it. So a run works in a local folder, its stage:
`stage` fetches the small files of the workdir, and `publish` copies those that have changed back, each as one object.
Checkpoints are not staged: `place` tells where Orbax reads and writes them, in the bucket itself.
"""

import atexit
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax

from refocus_jax.runtime import extras, lease

_CACHE = "~/.cache/refocus_jax/buckets"
_MARK = ".bucket.json"  # in the stage: the bucket's address, and the objects as they were last
_UNSTAGED = re.compile(r"(^|/)(checkpoints/|\.[^/]*$)|/$")  # checkpoints, the lease, and names that stand for folders
_SECONDS = 60.0  # until an answer of the bucket


def is_url(path: str | os.PathLike) -> bool:
    """Whether a path names a place in a bucket."""
    return "://" in os.fspath(path)


def check_url(name: str, url: str) -> None:
    """Raises a ValueError if this is not a place that this package can write to; `name` is that of the setting."""
    if not re.fullmatch(r"gs://[a-z0-9][-a-z0-9_.]*/.*[^/]", url):
        why = ", where Orbax cannot write checkpoints" if url.startswith("s3://") else ""
        raise ValueError(f"{name} is {url}{why}; give gs://BUCKET/FOLDER, or a folder on a file system that all "
                         "machines see (other buckets can be mounted)")


def objects(url: str) -> tuple[Any, str]:
    """Opens the bucket of an address; returns it with the prefix of the address's objects."""
    extras.require(url, "gcs", {"google.cloud.storage": "google-cloud-storage", "gcsfs": "gcsfs"})
    import google.auth.exceptions
    from google.cloud import storage

    name, _, prefix = url.removeprefix("gs://").partition("/")
    try:
        return storage.Client().bucket(name), f"{prefix}/"
    except google.auth.exceptions.DefaultCredentialsError as error:
        raise ValueError(f"{url}: {error}. Run gcloud auth application-default login") from error


def answered(url: str, call: Any, *arguments: Any, **settings: Any) -> Any:
    """Calls a method of the storage client, with a limit of time.

    Raises:
      OSError: The bucket does not exist, refuses, or does not answer; the message says which.
    """
    from google.api_core import exceptions
    from google.cloud.storage.retry import DEFAULT_RETRY

    try:
        return call(*arguments, timeout=_SECONDS, retry=DEFAULT_RETRY.with_timeout(_SECONDS), **settings)
    except exceptions.PreconditionFailed:
        raise
    except exceptions.GoogleAPIError as error:
        raise OSError(f"{url}: {error}; correct the address, or your rights to it") from error
    except Exception as error:  # whatever the client's libraries raise without a network
        raise OSError(f"{url} does not answer ({type(error).__name__}: {error}); check the network") from error


def stage(url: str, only_reads: bool) -> str:
    """Fetches the small files of a workdir in a bucket; returns the local folder.

    Args:
      url: The workdir.
      only_reads: Whether this run holds no lease. Its folder is then a new one, which nobody else uses, and is removed
        at the end. Otherwise every process of the run has a folder that stays, so that its files need not be fetched
        again. What is in it and not in the bucket is removed.

    Raises:
      ValueError: Nobody has logged in.
      OSError: The bucket cannot be read.
      ImportError: The extra `gcs` is not installed.
    """
    bucket, prefix = objects(url)
    if only_reads:
        folder = Path(tempfile.mkdtemp(prefix="refocus_jax_"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    else:
        folder = Path(_CACHE).expanduser() / f"process_{jax.process_index()}" / url.removeprefix("gs://")
    found = {blob.name.removeprefix(prefix): blob for blob in answered(url, _list, bucket, prefix)}
    known = _mark(folder)["objects"] if (folder / _MARK).exists() else {}
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        name = path.relative_to(folder).as_posix()
        if name not in found or known.get(name) != [found[name].crc32c, *_look(path)]:
            path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    for name, blob in found.items():
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            answered(url, blob.download_to_filename, str(folder / name))
    _write_mark(folder, url, {name: [blob.crc32c, *_look(folder / name)] for name, blob in found.items()})
    return str(folder)


def _list(bucket: Any, prefix: str, **settings: Any) -> list[Any]:
    return [blob for blob in bucket.list_blobs(prefix=prefix, **settings)
            if not _UNSTAGED.search(blob.name.removeprefix(prefix))]


def _look(path: Path) -> tuple[int, int]:
    seen = path.stat()
    return seen.st_size, seen.st_mtime_ns


def _mark(folder: Path) -> dict[str, Any]:
    return json.loads((folder / _MARK).read_text())


def _write_mark(folder: Path, url: str, objects: dict[str, Any]) -> None:
    (folder / _MARK).write_text(json.dumps({"url": url, "objects": objects}))


def _staged(path: Path) -> Path | None:
    """Returns the stage that a path lies in; None if it lies in none."""
    return next((folder for folder in (path, *path.parents) if (folder / _MARK).exists()), None)


def place(path: str | os.PathLike) -> Any:
    """Returns where the checkpoints of a folder lie: the path itself, or its place in the bucket if it is staged."""
    from etils import epath

    if is_url(path):
        return epath.Path(path)
    path = Path(path).absolute()
    folder = _staged(path)
    return path if folder is None else epath.Path(_mark(folder)["url"]) / path.relative_to(folder).as_posix()


def publish(path: str | os.PathLike) -> None:
    """Copies the files of a path's stage that have changed to the bucket, if it is staged. Only process 0 does.

    Raises:
      OSError: The bucket cannot be written.
      LeaseError: This run has lost its lease.
    """
    folder = _staged(Path(path).absolute())
    if folder is None or jax.process_index():
        return
    lease.confirm()
    mark = _mark(folder)
    url, known = mark["url"], mark["objects"]
    bucket, prefix = objects(url)
    names = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*"))
             if file.is_file() and not _UNSTAGED.search(file.relative_to(folder).as_posix())}
    for name, file in names.items():
        look = _look(file)
        if known.get(name, [None])[1:] != [*look]:
            blob = bucket.blob(f"{prefix}{name}")
            answered(url, blob.upload_from_string, file.read_bytes())
            known[name] = [blob.crc32c, *look]
    for name in known.keys() - names.keys():
        answered(url, bucket.blob(f"{prefix}{name}").delete)
        del known[name]
    _write_mark(folder, url, known)


def move(url: str, to: str) -> None:
    """Gives all objects below an address another address in the same bucket, by copies inside it."""
    (bucket, prefix), (_, other) = objects(url), objects(to)
    found = answered(url, lambda **settings: list(bucket.list_blobs(prefix=prefix, **settings)))
    for blob in found:
        answered(url, bucket.copy_blob, blob, bucket, f"{other}{blob.name.removeprefix(prefix)}")
    for blob in found:  # only now, so that a kill leaves one of the two complete
        answered(url, blob.delete)
