"""Writes metrics, pictures and reports of a run as files and for TensorBoard, and reads metrics again."""

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import numpy as np
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from refocus_jax.runtime.files import atomically, valid, write_json, writing
from refocus_jax.runtime.mirror import Mirror


class Writer:
    """Writes into the directory of one training stage.

    `metrics.jsonl` holds one JSON object per line. JSON has no numbers for NaN and the infinities, so they are
    written as the strings "nan", "inf" and "-inf", which Python's `float` reads. All other files appear complete or
    not at all. Only process 0 writes; the others may call every method.

    If a file cannot be written, an OSError names its path. Pictures are an exception: a run continues without them.

    Args:
      directory: Made if missing.
      resume_step: Drops the scalars of later steps, which the resumed run will write again. -1 drops all, None
        drops none.
      mirror: Where scalars and pictures are copied to, and which is closed with the writer; None for nowhere.

    Raises:
      ValueError: A line of metrics.jsonl other than the last is damaged.
      OSError: The directory cannot be written.
    """

    def __init__(self, directory: str | os.PathLike, *, resume_step: int | None = None, mirror: Mirror | None = None):
        self._mirror = mirror
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self._directory, self._picture_failed = Path(directory), False
        self._path = self._directory / "metrics.jsonl"
        if self._path.exists():
            _drop_lines(self._path, math.inf if resume_step is None else resume_step)
        with writing(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
            self._metrics = self._path.open("a", encoding="utf-8")
            # The synchronous part of tensorboardX. The thread of its SummaryWriter may still hold scalars when the run
            # is killed. They would be lost if a checkpoint covers their steps, because these are not run again.
            self._events = EventsWriter(str(self._directory / "events"))
            if resume_step is not None:
                start = SessionLog(status=SessionLog.START)  # TensorBoard drops the later steps
                self._add_event(resume_step + 1, session_log=start)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Appends one line `{"step": ..., "time": seconds since 1970, name: value, ...}` and flushes the file.

        Raises:
          ValueError: A value is named "step" or "time".
        """
        if not self._active:
            return
        if reserved := values.keys() & {"step", "time"}:
            raise ValueError(f"Rename the metrics {sorted(reserved)}: every line has these names already.")
        values = {name: float(value) for name, value in values.items()}
        line = json.dumps(valid({"step": int(step), "time": time.time(), **values}), allow_nan=False)
        parts = [part for name, value in values.items() for part in summary.scalar(name, value).value]
        with writing(self._path):
            self._metrics.write(line + "\n")
            self._metrics.flush()
            self._add_event(step, summary=Summary(value=parts))
        if self._mirror:
            self._mirror.scalars(step, values)

    def image(self, step: int, name: str, image_hwc: np.ndarray) -> None:
        """Writes `pictures/NAME.png`, replacing that of an earlier step; TensorBoard keeps all steps.

        Args:
          step: Shown by TensorBoard.
          name: May contain "/".
          image_hwc: uint8, 3 channels.

        Raises:
          ValueError: The image has another type or shape.
        """
        if not self._active:
            return
        picture = _picture(image_hwc)
        with self._doing_without(), atomically(self._directory / "pictures" / f"{name}.png") as path:
            picture.save(path, format="PNG")
            self._add_event(step, summary=summary.image(name, image_hwc, dataformats="HWC"))
        if self._mirror:
            self._mirror.image(step, name, image_hwc)

    def animation(self, name: str, frames: Sequence[np.ndarray], milliseconds: int) -> None:
        """Writes `pictures/NAME.gif`, which repeats forever.

        Args:
          name: May contain "/".
          frames: Images as for `image`, all of one size.
          milliseconds: How long each frame is shown; GIF stores tens of milliseconds.

        Raises:
          ValueError: There are no frames, or an image has another type or shape.
        """
        if not self._active:
            return
        if not len(frames):
            raise ValueError(f"The animation {name!r} has no frames. Pass at least one.")
        first, *rest = [_picture(frame_hwc) for frame_hwc in frames]
        with self._doing_without(), atomically(self._directory / "pictures" / f"{name}.gif") as path:
            first.save(path, format="GIF", save_all=True, append_images=rest, duration=milliseconds, loop=0)

    def json(self, name: str, content: dict[str, Any]) -> None:
        """Writes `NAME.json`, indented."""
        if self._active:
            write_json(self._directory / f"{name}.json", content)

    @contextlib.contextmanager
    def _doing_without(self) -> Iterator[None]:
        """Turns the OSError of a picture that cannot be written into a warning, given once."""
        try:
            yield
        except OSError as error:
            if not self._picture_failed:
                logging.warning("%s. The run continues without this picture and others that cannot be written.", error)
            self._picture_failed = True

    def _add_event(self, step: int, **content) -> None:
        self._events.write_event(Event(wall_time=time.time(), step=step, **content))
        self._events.flush()

    def close(self) -> None:
        """Closes the files."""
        if self._active:
            with contextlib.suppress(OSError):  # an error in writing has already been raised
                self._metrics.close()
            with contextlib.suppress(OSError):
                self._events.close()
        if self._mirror:
            self._mirror.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class MetricsLine(NamedTuple):
    """A line of metrics.jsonl.

    Attributes:
      raw: Its bytes with the line break.
      values: Its numbers by name, including "step" and "time".
    """

    raw: bytes
    values: dict[str, float]


def read_metrics(path: Path) -> list[MetricsLine]:
    """Reads the lines of a metrics.jsonl, except a last line that is damaged or incomplete.

    A crash may have cut off the last line, or it may be in the middle of being written.

    Raises:
      ValueError: Another line is damaged.
    """
    found, lines = [], path.read_bytes().splitlines()
    for number, raw in enumerate(lines, 1):
        try:
            values = json.loads(raw.decode())
            values = {name: int(value) if name == "step" else float(value)  # "nan" and "inf" are strings
                      for name, value in {"step": values["step"], **values}.items()}
            found.append(MetricsLine(raw + b"\n", values))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number} is damaged ({error!r}); correct or remove that line, and keep "
                                 "the others") from error
    return found


def _drop_lines(metrics: Path, last_step: float) -> None:
    """Removes the lines of steps after `last_step`, and the last line if it is damaged."""
    kept = [line.raw for line in read_metrics(metrics) if line.values["step"] <= last_step]
    with atomically(metrics) as path:
        path.write_bytes(b"".join(kept))


def _picture(image_hwc: np.ndarray) -> Image.Image:
    if image_hwc.dtype != np.uint8 or image_hwc.ndim != 3 or image_hwc.shape[-1] != 3:
        raise ValueError(
            f"A picture must be uint8 of shape (height, width, 3), got {image_hwc.dtype} {image_hwc.shape}. "
            "Convert it before you write it."
        )
    return Image.fromarray(image_hwc)
