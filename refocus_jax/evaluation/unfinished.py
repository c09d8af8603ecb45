"""Storage for the images that have been drawn so far, so that an interrupted call can continue."""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from refocus_jax.runtime import processes
from refocus_jax.runtime.files import atomically, writing


class Unfinished:
    """The first `done` images of a set that is being drawn, with their bytes in `unfinished.rgb`.

    `unfinished.jsonl` describes this file: first the identity of the images, then the number and the digest of the
    images in every batch. Images that were truncated or have changed since are not counted as done. All processes must
    create an object and call its methods; only process 0 reads and writes.

    Args:
      directory: Directory of the files; must exist.
      shape: Shape (n, h, w, 3) of all images, which are uint8.
      identity: Everything that the images depend on, as JSON.

    Attributes:
      done: Number of images that are on disk.

    Raises:
      ValueError: If the directory holds unfinished images with another identity.
      OSError: If the directory cannot be written.
    """

    def __init__(self, directory: Path, shape: tuple[int, int, int, int], identity: dict[str, Any]):
        self._images, self._log = directory / "unfinished.rgb", directory / "unfinished.jsonl"
        self._shape, self._identity = shape, identity
        self.done = processes.from_first(self._go_on)

    def _go_on(self) -> int:
        """Return how many images are on disk, after truncating everything that follows them."""
        kept = list(self._sound()) if self._log.exists() and self._images.exists() else []
        done = sum(line["images"] for line in kept)
        with atomically(self._log) as log:
            log.write_text("".join(json.dumps(line) + "\n" for line in [{"identity": self._identity}, *kept]))
        with writing(self._images), open(self._images, "ab") as file:
            file.truncate(done * self._bytes_each)
        return done

    def _sound(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of the batches that are on disk unchanged, up to the first one that is not."""
        done = 0
        with open(self._log, "rb") as log, open(self._images, "rb") as images:
            try:
                self._check_identity(json.loads(log.readline())["identity"])
                for line in map(json.loads, log):
                    if _digest(images.read(line["images"] * self._bytes_each)) != line["blake2b"]:
                        raise KeyError(f"the digest of images from {done} on")
                    yield line
                    done += line["images"]
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
                # A process that is killed while it writes leaves a partial line; all other causes are damage.
                logging.warning("%s is damaged after its first %d images; those after them are drawn again",
                                self._images, done)

    def _check_identity(self, before: dict[str, Any]) -> None:
        before, now = (flatten_dict(identity, sep=".") for identity in (before, self._identity))
        differing = [f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in sorted({*before, *now})
                     if before.get(name) != now.get(name)]
        if differing:
            raise ValueError(f"{self._images.parent} holds unfinished samples of other settings: "
                             f"{'; '.join(differing)}. Finish them with their own settings, remove the directory, or "
                             "give another sample.output")

    def add(self, images_nhwc: np.ndarray) -> None:
        """Add the next images, uint8; they are counted as soon as they are on disk."""
        if jax.process_index() == 0:
            content = np.ascontiguousarray(images_nhwc).tobytes()
            with writing(self._images, self._shape[0] * self._bytes_each):
                with open(self._images, "ab") as file:
                    file.write(content)
                with open(self._log, "a") as log:
                    log.write(json.dumps({"images": len(images_nhwc), "blake2b": _digest(content)}) + "\n")
        self.done += len(images_nhwc)

    @property
    def images(self) -> np.ndarray:
        """All images, mapped from disk; only for process 0, when all are done."""
        return np.memmap(self._images, np.uint8, "r", shape=self._shape)

    @property
    def _bytes_each(self) -> int:
        return int(np.prod(self._shape[1:]))

    def remove(self) -> None:
        """Remove the files."""
        if jax.process_index() == 0:
            self._log.unlink(missing_ok=True)
            self._images.unlink(missing_ok=True)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
