"""Leases on directories: the run that writes into a directory holds its lease, and all other runs are refused.

The lease is a file, `.writer.json`, that says who holds it. It needs no file locks. It only requires that, of several
processes that try to create the same file at once, a single one succeeds, which also holds on NFS and mounted buckets.
A thread of the holder touches the file every two seconds. Another run tells whether the holder is alive by looking up
its process, where possible, and otherwise by watching whether the file's time changes; no two clocks are compared.

To take over from a dead holder, a run creates `.writer.DIGEST.json`, named after the content of the dead holder's file,
and moves it to `.writer.json`. If that run dies in between, the next one takes over from it in the same way.
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
# A holder on another machine is considered dead if its file stays unchanged for this long.
WATCH_SECONDS = 10.0
_LOOK_SECONDS = 0.25
FILE = ".writer.json"
_PROC = Path("/proc")


class LeaseError(RuntimeError):
    """Another run writes into the directory, or has taken it over."""


class Holding:
    """What leases on directories and in buckets have in common: a context, and a thread that keeps the lease alive.

    A subclass takes the lease in `_acquire`, which ends with `_hold`, and has `_keep_alive`, `_release` and `confirm`.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._beat: threading.Thread | None = None

    def __enter__(self) -> Self:
        processes.from_first(self._acquire)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._beat is None:
            return
        held.remove(self)
        self._stop.set()
        self._beat.join()
        self._release()

    def _hold(self) -> None:
        held.append(self)
        self._beat = threading.Thread(target=self._keep_alive, daemon=True)
        self._beat.start()

    def _acquire(self) -> None:
        raise NotImplementedError

    def _keep_alive(self) -> None:
        raise NotImplementedError

    def _release(self) -> None:
        raise NotImplementedError

    def confirm(self) -> None:
        """Raises a LeaseError if this run no longer holds the lease."""
        raise NotImplementedError


class Lease(Holding):
    """Context in which only this run may write into a directory. All processes of the run must enter it.

    Process 0 holds the lease for all of them. Code that writes confirms the lease first, see `confirm`.

    Args:
      directory: Made if missing. If it was made and is empty at the end, it is removed.
      mode: The run's `--mode`, shown to runs that are refused.

    Raises:
      LeaseError: Another run holds the lease; the message names it.
      OSError: The directory cannot be written.
    """

    def __init__(self, directory: str | os.PathLike, mode: str):
        super().__init__()
        self._directory, self._mode = Path(directory), mode
        self._path, self._digest, self._made = self._directory / FILE, "", False

    def _release(self) -> None:
        with contextlib.suppress(OSError):  # a file that remains names a process that has ended
            if self._is_own(_read(self._path)):
                self._path.unlink()
            if self._made:
                self._directory.rmdir()

    def confirm(self) -> None:
        """Raises a LeaseError if this run no longer holds the lease."""
        found = _read(self._path)
        if not self._is_own(found):
            why = (f"{found} has taken it over, because this one did not respond" if found
                   else f"{self._path} has been removed")
            raise LeaseError(f"this run may no longer write into {self._directory}, and stops: {why}. Give another "
                             "directory, or start the same command again when no other run writes there")

    def _is_own(self, found: "Holder | None") -> bool:
        return found is not None and found.digest == self._digest

    def _acquire(self) -> None:
        try:
            self._made = not self._directory.exists()
            self._directory.mkdir(parents=True, exist_ok=True)
            while not self._try():
                time.sleep(_LOOK_SECONDS)
        except OSError as error:
            raise OSError(f"{self._directory} cannot be written ({error.strerror}); give a directory that can be "
                          "written, or correct its permissions") from error
        self._hold()

    def _try(self) -> bool:
        """Takes the lease if it is free or its holder is dead; returns False if something has changed meanwhile."""
        *dead, path = _succession(self._directory)
        before = _read(path)
        if before is None and dead:
            return False
        if before is not None:
            if not self._is_dead(path, before):
                return False
            dead, path = [*dead, path], before.successor(self._directory)
        content = json.dumps(describe_self(self._mode), indent=2).encode()
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
        # If another run completed its takeover after this one looked, this run's file does not succeed any holder.
        own = self._is_own(_read(path))
        if not own or _succession(self._directory) != [*dead, path]:
            if own:
                path.unlink()
            return False
        os.replace(path, self._path)
        for other in dead[1:]:
            other.unlink(missing_ok=True)
        if before is not None:
            logging.warning("%s was held by %s, which is dead; this run continues there.", self._directory, before)
        return True

    def _is_dead(self, path: Path, holder: "Holder") -> bool:
        """Whether the holder is dead. False if the file belongs to another holder by now.

        Raises:
          LeaseError: The holder is alive.
        """
        alive = holder.is_alive()
        if alive is None:
            logging.warning("%s was last held by %s; watching for %.0f seconds to see whether it is alive.",
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
            with contextlib.suppress(OSError):  # a file system that is unavailable may come back
                if not self._is_own(_read(self._path)):
                    logging.error("%s has been taken over by another run; this run stops before it writes again.",
                                  self._directory)
                    return
                os.utime(self._path)  # works on a full disk too


held: list[Holding] = []


def confirm() -> None:
    """Raises a LeaseError if this process has lost one of its leases. Must be called before something is written."""
    for lease in held:
        lease.confirm()


class Holder:
    """The holder that a lease file describes.

    Attributes:
      digest: Digest of the file's content, which never changes.
      touched: Modification time of the file, which the holder keeps changing.
    """

    def __init__(self, content: bytes, touched: int):
        self.digest, self.touched = _digest(content), touched
        try:
            says = json.loads(content)
        except ValueError:  # the file is being written, or the machine crashed
            says = None
        self._says: dict[str, Any] = says if isinstance(says, dict) else {}

    def __str__(self) -> str:
        if not self._says:
            return f"a run whose {FILE} is damaged"
        process, host, mode, since = map(self._says.get, ("process", "host", "mode", "since"))
        return f"process {process} on {host} (--mode={mode}, since {since})"

    def successor(self, directory: Path) -> Path:
        """The file that a run creates to take over from this holder."""
        return directory / f".writer.{self.digest}.json"

    def is_alive(self) -> bool | None:
        """Whether the holder is alive; None if this can only be found out by watching its file."""
        here = describe_self("")
        if here["machine"] is not None and here["machine"] == self._says.get("machine"):
            return _started(self._says.get("process")) == self._says.get("started")
        # Slurm restarts a job only after it has ended.
        again = here["slurm_job"] and here["slurm_job"] == self._says.get("slurm_job")
        return False if again and self._says["slurm_restarts"] < here["slurm_restarts"] else None


def _succession(directory: Path) -> list[Path]:
    """The lease file and the files of unfinished takeovers, in order; the last one is the current holder's."""
    path, found = directory / FILE, []
    while True:
        found.append(path)
        holder = _read(path)
        if holder is None or not (path := holder.successor(directory)).exists():
            return found


def _read(path: Path) -> Holder | None:
    try:
        with path.open("rb") as file:
            return Holder(file.read(), os.fstat(file.fileno()).st_mtime_ns)
    except FileNotFoundError:
        return None


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def describe_self(mode: str) -> dict[str, Any]:
    """Describes this process as the holder of a lease."""
    process = os.getpid()
    job = os.environ.get("SLURM_JOB_ID")
    return {
        "host": socket.gethostname(), "process": process, "mode": mode,
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"), "started": _started(process), "machine": _machine(),
        "slurm_job": job and f"{os.environ.get('SLURM_CLUSTER_NAME', '')}:{job}",
        "slurm_restarts": int(os.environ.get("SLURM_RESTART_COUNT", 0)), "lease": uuid.uuid4().hex}


def _machine() -> str | None:
    """Identifies the processes in /proc, by the machine's boot and the container; None without /proc."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink(_PROC / 'self/ns/pid')}"
    except OSError:
        return None


def _started(process: int | None) -> int | None:
    """Start time of a process on this machine, in clock ticks since boot; None if it has ended."""
    try:
        # The program's name, in parentheses, may contain any character.
        state, *fields = (_PROC / str(process) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in ("Z", "X") else int(fields[18])  # ended, but its parent has not waited for it
