"""A directory has one writer: who writes into it holds a lease, and everybody else is refused.

The lease is a file, `.writer.json`, that says who holds it. It needs no lock of the file system, only that a file is
created by one of those who try to at once, which also holds on NFS and mounted buckets. A thread of the holder touches
it every two seconds. Whether a holder is alive is seen by its process where that can be looked up, and otherwise by
whether the time of the file changes while one watches: no two clocks are compared.

A dead holder is succeeded by the one who creates `.writer.DIGEST.json`, named after the content of the dead one's file,
and moves it to `.writer.json`. A succession that is broken off is succeeded in the same way.
"""

import contextlib
import hashlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Self

from refocus_jax.runtime import processes

BEAT_SECONDS = 2.0
# How long the file of a holder on another machine may stay as it is until the holder is taken for dead.
WATCH_SECONDS = 10.0
_LOOK_SECONDS = 0.25
_FILE = ".writer.json"
_PROC = Path("/proc")


class LeaseError(RuntimeError):
    """Another run writes into the directory, or has taken it over."""


class Lease:
    """While it is entered, this run alone may write into a directory. All processes of the run must enter it.

    Process 0 holds it for all. Leases that are held are confirmed by what writes, see `confirm`.

    Args:
      directory: made if missing; one that was made and has stayed empty is removed in the end.
      mode: what the run does, for those who are refused.

    Raises:
      LeaseError: another run holds it; it is named. OSError: the directory cannot be written.
    """

    def __init__(self, directory: str | os.PathLike, mode: str):
        self._directory, self._mode = Path(directory), mode
        self._path, self._digest = self._directory / _FILE, ""
        self._made, self._stop = False, threading.Event()
        self._beat: threading.Thread | None = None

    def __enter__(self) -> Self:
        processes.from_first(self._acquire)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._beat is None:
            return
        _held.remove(self)
        self._stop.set()
        self._beat.join()
        with contextlib.suppress(OSError):  # a file that stays is that of a process that has ended
            if self._is_own(_read(self._path)):
                self._path.unlink()
            if self._made:
                self._directory.rmdir()

    def confirm(self) -> None:
        """Raises a LeaseError if the lease is no longer that of this run."""
        found = _read(self._path)
        if not self._is_own(found):
            why = f"{found} has taken it over, as this one stood still" if found else f"{self._path} has been removed"
            raise LeaseError(f"this run may no longer write into {self._directory}, and stops: {why}. Give another "
                             "directory, or start the same command again when nobody else writes there")

    def _is_own(self, found: "_Holder | None") -> bool:
        return found is not None and found.digest == self._digest

    def _acquire(self) -> None:
        try:
            self._made = not self._directory.exists()
            self._directory.mkdir(parents=True, exist_ok=True)
            while not self._try():
                time.sleep(_LOOK_SECONDS)
        except OSError as error:
            raise OSError(f"{self._directory} cannot be written ({error.strerror}); give a directory that can, or "
                          "correct its permissions") from error
        _held.append(self)
        self._beat = threading.Thread(target=self._keep_alive, daemon=True)
        self._beat.start()

    def _try(self) -> bool:
        """Takes the lease if it is free or its holder is dead; False if something has changed meanwhile."""
        *dead, path = _succession(self._directory)
        before = _read(path)
        if before is None and dead:
            return False
        if before is not None:
            if not self._is_dead(path, before):
                return False
            dead, path = [*dead, path], before.successor(self._directory)
        content = json.dumps(_describe_self(self._mode), indent=2).encode()
        self._digest = _digest(content)
        try:
            with path.open("xb", buffering=0) as file:
                try:
                    file.write(content)
                except OSError:
                    path.unlink()
                    raise
        except FileExistsError:
            return False
        # Whoever looked before somebody else's succession was complete has created a file that succeeds nobody.
        own = self._is_own(_read(path))
        if not own or _succession(self._directory) != [*dead, path]:
            if own:
                path.unlink()
            return False
        os.replace(path, self._path)
        for other in dead[1:]:
            other.unlink(missing_ok=True)
        if before is not None:
            logging.warning("%s was held by %s, which is dead; this run goes on there.", self._directory, before)
        return True

    def _is_dead(self, path: Path, holder: "_Holder") -> bool:
        """Whether the holder is dead. False if the file is that of another one meanwhile.

        Raises:
          LeaseError: it is alive.
        """
        alive = holder.is_alive()
        if alive is None:
            logging.warning("%s was last held by %s; watching for %.0f seconds whether it is alive.",
                            self._directory, holder, WATCH_SECONDS)
        until = time.monotonic() + WATCH_SECONDS
        while alive is None and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)
            now = _read(path)
            if now is None or now.digest != holder.digest:
                return False
            alive = now.touched != holder.touched or None
        if alive:
            raise LeaseError(f"{self._directory} is being written by {holder}; wait until that run ends or stop it, or "
                             "give another directory")
        return True

    def _keep_alive(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # a file system that is away may come back
                if not self._is_own(_read(self._path)):
                    logging.error("%s has been taken over by another run; this one stops before it writes more.",
                                  self._directory)
                    return
                os.utime(self._path)  # needs no room


_held: list[Lease] = []


def confirm() -> None:
    """Must be called before something is written: raises a LeaseError if a lease of this process has been lost."""
    for lease in _held:
        lease.confirm()


class _Holder:
    """What a lease file says.

    Attributes:
      digest: of its content, which never changes. touched: the time of the file, which does.
    """

    def __init__(self, content: bytes, touched: int):
        self.digest, self.touched = _digest(content), touched
        try:
            says = json.loads(content)
        except ValueError:  # it is being written, or the machine went down
            says = None
        self._says: dict[str, Any] = says if isinstance(says, dict) else {}

    def __str__(self) -> str:
        if not self._says:
            return f"a run whose {_FILE} is damaged"
        process, host, mode, since = map(self._says.get, ("process", "host", "mode", "since"))
        return f"process {process} on {host} (--mode={mode}, since {since})"

    def successor(self, directory: Path) -> Path:
        return directory / f".writer.{self.digest}.json"

    def is_alive(self) -> bool | None:
        """None where only watching can tell."""
        here = _describe_self("")
        if here["machine"] is not None and here["machine"] == self._says.get("machine"):
            return _started(self._says.get("process")) == self._says.get("started")
        # Slurm starts a job again when it has ended.
        again = here["slurm_job"] and here["slurm_job"] == self._says.get("slurm_job")
        return False if again and self._says["slurm_restarts"] < here["slurm_restarts"] else None


def _succession(directory: Path) -> list[Path]:
    """The file of the holder, after those of dead ones whose succession is not complete."""
    path, found = directory / _FILE, []
    while True:
        found.append(path)
        holder = _read(path)
        if holder is None or not (path := holder.successor(directory)).exists():
            return found


def _read(path: Path) -> _Holder | None:
    try:
        with path.open("rb") as file:
            return _Holder(file.read(), os.fstat(file.fileno()).st_mtime_ns)
    except FileNotFoundError:
        return None


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _describe_self(mode: str) -> dict[str, Any]:
    process = os.getpid()
    job = os.environ.get("SLURM_JOB_ID")
    return {
        "host": socket.gethostname(), "process": process, "mode": mode,
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"), "started": _started(process), "machine": _machine(),
        "slurm_job": job and f"{os.environ.get('SLURM_CLUSTER_NAME', '')}:{job}",
        "slurm_restarts": int(os.environ.get("SLURM_RESTART_COUNT", 0)), "lease": uuid.uuid4().hex}


def _machine() -> str | None:
    """Names the processes that /proc shows: the machine since it was started, and the container. None without /proc."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink(_PROC / 'self/ns/pid')}"
    except OSError:
        return None


def _started(process: int | None) -> int | None:
    """When a process of this machine was started, in ticks since the machine was; None if it has ended."""
    try:
        # The name of the program, in parentheses, may hold anything.
        state, *fields = (_PROC / str(process) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in ("Z", "X") else int(fields[18])  # ended, and its parent has not asked yet
