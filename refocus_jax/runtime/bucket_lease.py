"""A lease on a workdir in a bucket, by writes that a bucket accepts only if nobody has written meanwhile.

The lease is an object, `.writer.json`, that says who holds it. Its holder writes it again and again. Another run
watches whether it changes, and takes it over if it does not.
"""

import json
import logging
import time
from typing import Any

from refocus_jax.runtime import bucket, lease

BEAT_SECONDS = 5.0  # a bucket accepts a write per object and second
WATCH_SECONDS = 20.0
_LOOK_SECONDS = 1.0


class BucketLease(lease.Holding):
    """As `lease.Lease`, for a workdir in a bucket.

    Args:
      url: The workdir.
      mode: The run's `--mode`.

    Raises:
      LeaseError: Another run holds the lease; the message names it.
      OSError: The bucket cannot be written.
    """

    def __init__(self, url: str, mode: str):
        super().__init__()
        self._url, self._content = url, json.dumps(lease.describe_self(mode), indent=2).encode()
        self._lost, self._generation = "", 0

    def _release(self) -> None:
        if not self._lost:
            self._conditionally(self._object().delete)

    def confirm(self) -> None:
        """Raises a LeaseError if this run no longer holds the lease."""
        if self._lost:
            raise lease.LeaseError(f"this run may no longer write into {self._url}, and stops: {self._lost}. Give "
                                   "another workdir, or start the same command again when no other run writes there")

    def _object(self) -> Any:
        found, prefix = bucket.objects(self._url)
        return found.blob(f"{prefix}{lease.FILE}")

    def _acquire(self) -> None:
        while not self._try():
            time.sleep(_LOOK_SECONDS)
        self._hold()

    def _try(self) -> bool:
        before = self._read()
        if before is not None:
            self._watch(before)
        self._generation = 0 if before is None else before.touched
        if not self._write():
            return False
        if before is not None:
            logging.warning("%s was held by %s, which is dead; this run continues there.", self._url, before)
        return True

    def _watch(self, holder: lease.Holder) -> None:
        """Returns when the holder is dead.

        Raises:
          LeaseError: It is alive.
        """
        alive, until = holder.is_alive(), time.monotonic() + WATCH_SECONDS
        if alive is None:
            logging.warning("%s was last held by %s; watching for %.0f seconds to see whether it is alive.", self._url,
                            holder, WATCH_SECONDS)
        while alive is None and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)
            now = self._read()
            alive = None if now is not None and now.touched == holder.touched else now is not None
        if alive:
            raise lease.LeaseError(f"{self._url} is being written by {holder}; wait until that run ends or stop it, or "
                                   "give another workdir")

    def _read(self) -> lease.Holder | None:
        found = self._object()
        if not bucket.answered(self._url, found.exists):
            return None
        try:
            content = bucket.answered(self._url, found.download_as_bytes)
        except OSError:  # it has been removed meanwhile
            return None
        bucket.answered(self._url, found.reload)
        return lease.Holder(content, found.generation)

    def _write(self) -> bool:
        """Writes the object; returns whether nobody else had written it."""
        found = self._object()
        if not self._conditionally(found.upload_from_string, self._content):
            return False
        self._generation = found.generation
        return True

    def _conditionally(self, call: Any, *arguments: Any) -> bool:
        from google.api_core.exceptions import PreconditionFailed

        try:
            bucket.answered(self._url, call, *arguments, if_generation_match=self._generation)
        except PreconditionFailed:
            return False
        return True

    def _keep_alive(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            try:
                if not self._write():
                    self._lost = f"{self._read() or 'another run'} has taken it over, because this one did not respond"
                    logging.error("%s has been taken over by another run; this run stops before it writes again.",
                                  self._url)
                    return
            except OSError as error:  # a bucket that is unavailable may come back
                logging.warning("%s", error)
