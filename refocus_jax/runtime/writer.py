"""Metrics, pictures and reports of a run, as files and for TensorBoard: only this file knows how."""

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


class Writer:
    """Writes into one directory: each training stage has its own.

    `metrics.jsonl` holds one JSON object per line. JSON has no number for nan and the infinities: they are
    the strings "nan", "inf" and "-inf", which Python's `float` reads. All other files appear complete or not
    at all. Only process 0 writes; the others may call every method.

    What cannot be written raises an OSError that names the path, except pictures: a run goes on without them.

    Args:
      directory: made if missing.
      resume_step: drops the scalars of later steps, which the resumed run will write again.
        -1 drops all, None drops none.

    Raises:
      ValueError: a line of metrics.jsonl, not the last, is damaged.
    """

    def __init__(self, directory: str | os.PathLike, *, resume_step: int | None = None):
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
            # The synchronous part of tensorboardX: its SummaryWriter's thread may hold back, and lose in a kill,
            # scalars of steps that a checkpoint has, and that are never written again.
            self._events = EventsWriter(str(self._directory / "events"))
            if resume_step is not None:
                start = SessionLog(status=SessionLog.START)  # makes TensorBoard forget the steps that come again
                self._add_event(resume_step + 1, session_log=start)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Appends one line `{"step": ..., "time": seconds since 1970, name: value, ...}`, readable at once.

        Raises:
          ValueError: a value is named "step" or "time".
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

    def image(self, step: int, name: str, image_hwc: np.ndarray) -> None:
        """Writes `pictures/NAME.png` over that of an earlier step; TensorBoard keeps all steps.

        Args:
          step: for TensorBoard.
          name: may contain "/".
          image_hwc: uint8, 3 channels.

        Raises:
          ValueError: not such an image.
        """
        if not self._active:
            return
        picture = _picture(image_hwc)
        with self._doing_without(), atomically(self._directory / "pictures" / f"{name}.png") as path:
            picture.save(path, format="PNG")
            self._add_event(step, summary=summary.image(name, image_hwc, dataformats="HWC"))

    def animation(self, name: str, frames: Sequence[np.ndarray], milliseconds: int) -> None:
        """Writes `pictures/NAME.gif`, which repeats for ever.

        Args:
          name: may contain "/".
          frames: images as for `image`, of one size.
          milliseconds: how long each frame is shown; GIF counts in tens of them.

        Raises:
          ValueError: there are no frames, or not such images.
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
        """A picture that cannot be written is worth a warning, once."""
        try:
            yield
        except OSError as error:
            if not self._picture_failed:
                logging.warning("%s. Training goes on without this picture, and others that cannot be written.", error)
            self._picture_failed = True

    def _add_event(self, step: int, **content) -> None:
        self._events.write_event(Event(wall_time=time.time(), step=step, **content))
        self._events.flush()

    def close(self) -> None:
        if self._active:
            with contextlib.suppress(OSError):  # what could not be written has been said
                self._metrics.close()
            with contextlib.suppress(OSError):
                self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class MetricsLine(NamedTuple):
    """A line of metrics.jsonl: its bytes with the line break, and its numbers by name, "step" and "time" too."""

    raw: bytes
    values: dict[str, float]


def read_metrics(path: Path) -> list[MetricsLine]:
    """The lines of a metrics.jsonl. A last one that a crash has cut off or damaged, or that is being written, is not
    among them.

    Raises:
      ValueError: another line is damaged.
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
    """Drops the lines of steps after `last_step`, and a last line that is damaged."""
    kept = [line.raw for line in read_metrics(metrics) if line.values["step"] <= last_step]
    with atomically(metrics) as path:
        path.write_bytes(b"".join(kept))


def _picture(image_hwc: np.ndarray) -> Image.Image:
    if image_hwc.dtype != np.uint8 or image_hwc.ndim != 3 or image_hwc.shape[-1] != 3:
        raise ValueError(
            f"A picture must be uint8 of shape (height, width, 3), got {image_hwc.dtype} {image_hwc.shape}. "
            "Convert it before it is written."
        )
    return Image.fromarray(image_hwc)
