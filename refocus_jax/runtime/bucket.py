"""Workdirs and data in a bucket of Google Cloud Storage, gs://BUCKET/PATH.

Objects in a bucket cannot be appended to, and renaming one copies it. So a run works in a local folder, its stage:
`stage` fetches the small files of the workdir, and `publish` copies those that have changed back, each as one object.

Checkpoints and files of records are not staged. `place` tells where Orbax reads and writes checkpoints, in the bucket
itself. `send` moves a file of records there when it is written, and `address` tells where ArrayRecord reads it.
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
RECORDS = ".array_record"  # the suffix of files of records
# Checkpoints, the lease, names that stand for folders, and files of records.
_UNSTAGED = re.compile(rf"(^|/)(checkpoints/|\.[^/]*$)|/$|{re.escape(RECORDS)}$")
_ADDRESS = re.compile(r"gs://[a-z0-9][-a-z0-9_.]*/.*[^/]")
_SECONDS = 60.0  # until an answer of the bucket


def is_url(path: str | os.PathLike) -> bool:
    """Whether a path names a place in a bucket."""
    return "://" in os.fspath(path)


def is_address(path: str) -> bool:
    """Whether a path names a place that this package can read and write, gs://BUCKET/FOLDER."""
    return _ADDRESS.fullmatch(path) is not None


def check_url(name: str, url: str) -> None:
    """Raises a ValueError if this is not a place that this package can write to; `name` is that of the setting."""
    if not is_address(url):
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


def stage(url: str, only_reads: bool, data: bool = False) -> str:
    """Fetches the small files of a workdir or of data in a bucket; returns the local folder.

    Args:
      url: The place in the bucket.
      only_reads: Whether this run holds no lease. Its folder is then a new one, which nobody else uses, and is removed
        at the end. Otherwise every process of the run has a folder that stays, so that its files need not be fetched
        again. What is in it and not in the bucket is removed.
      data: Whether it is a set of data, of which only JSON files are staged, and nothing that lies deeper.

    Raises:
      ValueError: Nobody has logged in.
      OSError: The bucket cannot be read.
      ImportError: The extra `gcs` is not installed.
    """
    if only_reads:
        folder = Path(tempfile.mkdtemp(prefix="refocus_jax_"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    else:
        folder = Path(_CACHE).expanduser() / f"process_{jax.process_index()}" / url.removeprefix("gs://")
        folder.mkdir(parents=True, exist_ok=True)
    known = _mark(folder)["objects"] if (folder / _MARK).exists() else {}
    _write_mark(folder, {"url": url, "data": data, "objects": known, "sizes": {}})
    refresh(folder)
    return str(folder)


def open_data(path: str | os.PathLike, only_reads: bool = True) -> Path:
    """Returns the folder of a set of data: the path itself, or its stage if it is in a bucket, see `stage`."""
    return Path(stage(os.fspath(path), only_reads, data=True) if is_url(path) else path)


def refresh(path: Path) -> None:
    """Fetches what has changed in the bucket below a path, if it is staged, and removes what is not there.

    Raises:
      OSError: The bucket cannot be read.
    """
    path = path.absolute()
    folder = _staged(path)
    if folder is None:
        return
    mark = _mark(folder)
    url, known = mark["url"], mark["objects"]
    bucket, prefix = objects(url)
    within = "".join(f"{part}/" for part in path.relative_to(folder).parts)
    blobs = {blob.name.removeprefix(prefix): blob
             for blob in answered(url, _list, bucket, f"{prefix}{within}", "/" if mark["data"] else None)}
    found = {name: blob for name, blob in blobs.items()
             if not _UNSTAGED.search(name) and (name.endswith(".json") or not mark["data"])}
    for file in [file for file in path.rglob("*") if file.is_file() and file != folder / _MARK]:
        name = file.relative_to(folder).as_posix()
        if name not in found or known.get(name) != [found[name].crc32c, *_look(file)]:
            file.unlink()
    for name, blob in found.items():
        file = folder / name
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            answered(url, blob.download_to_filename, str(file))
        known[name] = [blob.crc32c, *_look(file)]
    mark["objects"] = {name: seen for name, seen in known.items() if name in found or not name.startswith(within)}
    mark["sizes"] |= {name: blob.size for name, blob in blobs.items() if name.endswith(RECORDS)}
    _write_mark(folder, mark)


def _list(bucket: Any, prefix: str, delimiter: str | None, **settings: Any) -> list[Any]:
    return list(bucket.list_blobs(prefix=prefix, delimiter=delimiter, **settings))


def _look(path: Path) -> tuple[int, int]:
    seen = path.stat()
    return seen.st_size, seen.st_mtime_ns


def _mark(folder: Path) -> dict[str, Any]:
    return json.loads((folder / _MARK).read_text())


def _write_mark(folder: Path, mark: dict[str, Any]) -> None:
    temporary = folder / f"{_MARK}.tmp"
    temporary.write_text(json.dumps(mark))
    os.replace(temporary, folder / _MARK)  # a kill leaves the old one or the new one


def _staged(path: Path) -> Path | None:
    """Returns the stage that a path lies in; None if it lies in none."""
    return next((folder for folder in (path, *path.parents) if (folder / _MARK).exists()), None)


def address(path: str | os.PathLike) -> str:
    """Returns the address in the bucket of what is staged, and any other path as it is."""
    folder = None if is_url(path) else _staged(Path(path).absolute())
    if folder is None:
        return os.fspath(path)
    return "/".join((_mark(folder)["url"], *Path(path).absolute().relative_to(folder).parts))


def place(path: str | os.PathLike) -> Any:
    """Returns where the checkpoints of a folder lie: the path itself, or its place in the bucket if it is staged."""
    from etils import epath

    found = address(path)
    return epath.Path(found) if is_url(found) else Path(found).absolute()


def sizes(path: Path) -> dict[str, int]:
    """Returns the sizes in bytes of the files of records in a folder, by name."""
    folder = _staged(path.absolute())
    if folder is None:
        return {file.name: file.stat().st_size for file in path.glob(f"*{RECORDS}")}
    found = ((folder / name, size) for name, size in _mark(folder)["sizes"].items())
    return {file.name: size for file, size in found if file.parent == path.absolute()}


def list_files(folder: str) -> dict[str, int]:
    """Returns the sizes in bytes of the files in a folder or in a place of a bucket, by name; deeper ones do not count.

    Raises:
      OSError: It cannot be read.
    """
    if not is_url(folder):
        return {file.name: file.stat().st_size for file in Path(folder).iterdir()}
    bucket, prefix = objects(folder)
    return {blob.name.removeprefix(prefix): blob.size for blob in answered(folder, _list, bucket, prefix, "/")}


def send(path: Path) -> None:
    """Copies one file to the bucket, if it is staged; a file of records then remains only there.

    Unlike `publish`, every process may call this.

    Raises:
      OSError: The bucket cannot be written.
      LeaseError: This run has lost its lease.
    """
    folder = _staged(path.absolute())
    if folder is None:
        return
    lease.confirm()
    mark = _mark(folder)
    _upload(*objects(mark["url"]), folder, path.absolute(), mark)
    _write_mark(folder, mark)


def _upload(bucket: Any, prefix: str, folder: Path, file: Path, mark: dict[str, Any]) -> None:
    """Copies a file of a stage to the bucket."""
    name, look = file.relative_to(folder).as_posix(), _look(file)
    blob = bucket.blob(f"{prefix}{name}")
    if name.endswith(RECORDS):
        answered(mark["url"], blob.upload_from_filename, str(file))
        mark["sizes"][name] = look[0]
        file.unlink()
    else:
        answered(mark["url"], blob.upload_from_string, file.read_bytes())  # it may grow meanwhile
        mark["objects"][name] = [blob.crc32c, *look]


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
        if known.get(name, [None])[1:] != [*_look(file)]:
            _upload(bucket, prefix, folder, file, mark)
    for name in known.keys() - names.keys():
        answered(url, bucket.blob(f"{prefix}{name}").delete)
        del known[name]
    _write_mark(folder, mark)


def move(url: str, to: str) -> None:
    """Gives all objects below an address another address in the same bucket, by copies inside it."""
    (bucket, prefix), (_, other) = objects(url), objects(to)
    found = answered(url, lambda **settings: list(bucket.list_blobs(prefix=prefix, **settings)))
    for blob in found:
        answered(url, bucket.copy_blob, blob, bucket, f"{other}{blob.name.removeprefix(prefix)}")
    for blob in found:  # only now, so that a kill leaves one of the two complete
        answered(url, blob.delete)
