import errno
import json
import math
import os
import time

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboardX.proto import event_pb2

from refocus_jax.runtime.writer import Writer


def read_lines(directory):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (directory / "metrics.jsonl").read_text()
    assert text.endswith("\n") or not text
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def read_events(directory):
    """TensorBoard's record format: length, checksum, payload, checksum."""
    events = []
    for path in sorted(directory.glob("events.*")):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            events.append(event_pb2.Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return events


def test_scalars_are_readable_while_the_run_goes_on(tmp_path):
    with Writer(tmp_path) as writer:
        for step in (1, 2):
            writer.scalars(step, {"loss": 1 / 3 / step, "accuracy": np.float32(0.5)})
            *_, line = read_lines(tmp_path)
            assert line.pop("time") > 1e9
            assert line == {"step": step, "loss": 1 / 3 / step, "accuracy": 0.5}


def test_scalars_and_images_reach_tensorboard(tmp_path):
    with Writer(tmp_path) as writer:
        writer.scalars(7, {"loss": 0.25})
        writer.image(7, "samples/greedy", np.zeros((4, 5, 3), np.uint8))
    events = read_events(tmp_path)
    values = {value.tag: (event.step, value) for event in events for value in event.summary.value}
    step, loss = values["loss"]
    assert (step, loss.simple_value) == (7, 0.25)
    step, samples = values["samples/greedy"]
    assert (step, samples.image.height, samples.image.width) == (7, 4, 5)


def test_non_finite_values_stay_visible_in_valid_json(tmp_path):
    with Writer(tmp_path) as writer:
        writer.scalars(0, {"nan": math.nan, "high": math.inf, "low": -math.inf})
        writer.json("report", {"rows": [{"fid": np.float32("nan")}, (1, np.int64(2))]})
    (line,) = read_lines(tmp_path)
    assert (line["nan"], line["high"], line["low"]) == ("nan", "inf", "-inf")
    assert json.loads((tmp_path / "report.json").read_text()) == {"rows": [{"fid": "nan"}, [1, 2]]}


def test_metrics_may_not_hide_the_step(tmp_path):
    with Writer(tmp_path) as writer, pytest.raises(ValueError, match="step"):
        writer.scalars(0, {"step": 1.0})


@pytest.mark.parametrize(("resume_step", "kept"), [(None, [0, 5, 10]), (5, [0, 5]), (7, [0, 5]), (-1, [])])
def test_resuming_drops_what_will_be_written_again(tmp_path, resume_step, kept):
    with Writer(tmp_path) as writer:
        for step in (0, 5, 10):
            writer.scalars(step, {"loss": float(step)})
    with Writer(tmp_path, resume_step=resume_step) as writer:
        writer.scalars(11, {"loss": 11.0})
    assert [line["step"] for line in read_lines(tmp_path)] == [*kept, 11]
    purges = [event.step for event in read_events(tmp_path) if event.HasField("session_log")]
    assert purges == ([] if resume_step is None else [resume_step + 1])


def test_a_line_cut_off_by_a_crash_is_dropped(tmp_path):
    with Writer(tmp_path) as writer:
        writer.scalars(1, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    with Writer(tmp_path) as writer:
        writer.scalars(2, {"loss": 2.0})
    assert [line["step"] for line in read_lines(tmp_path)] == [1, 2]


@pytest.mark.parametrize("end", [b'{"step": 3, "loss": 1.0}', b'{"step": 3, "loss": 1.0}\n', b"\xff\n", b"\0\0\0\n",
                                 b'{"step": 3, "lo\n', b'{"step": 3, "loss": "high"}\n'], ids=repr)
def test_of_metrics_with_a_damaged_end_nothing_else_is_lost(tmp_path, end):
    """A complete line that lacks only its line break is kept."""
    with Writer(tmp_path) as writer:
        for step in (1, 2):
            writer.scalars(step, {"loss": 1.0})
    before = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(before + end)
    with Writer(tmp_path, resume_step=9) as writer:
        writer.scalars(10, {"loss": 2.0})
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(before)
    assert [line["step"] for line in read_lines(tmp_path)] == [1, 2, 3, 10] if b"1.0}" in end else [1, 2, 10]


def test_metrics_damaged_elsewhere_are_left_alone_and_named(tmp_path):
    content = b'{"step": 1, "loss": 1}\n{"step": 2, "caf\xe9": 1}\n{"step": 3, "loss": 1}\n'
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match="metrics.jsonl, line 2 is damaged .*; correct or remove that line, and keep"):
        Writer(tmp_path, resume_step=1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == content


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_run_goes_on_without_pictures_that_cannot_be_written(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Image.Image, "save", full)
    frame = np.zeros((4, 4, 3), np.uint8)
    with Writer(tmp_path) as writer:
        for step in range(3):
            writer.image(step, "samples", frame)
            writer.animation("scales", [frame], 100)
            writer.scalars(step, {"loss": 1.0})
    (record,) = caplog.records
    assert "pictures/samples.png cannot be written (No space left on device); make room" in record.getMessage()
    assert len(read_lines(tmp_path)) == 3 and not list(tmp_path.rglob("*.tmp"))


def test_metrics_that_cannot_be_written_stop_the_run_in_a_line(tmp_path):
    """The numbers of a run must have no gaps, and a checkpoint could not be written either."""
    with Writer(tmp_path) as writer:
        writer._metrics.close()
        writer._metrics = open("/dev/full", "a")  # noqa: SIM115  # the writer closes it
        with pytest.raises(OSError, match=r"metrics.jsonl cannot be written \(No space left on device\); make room"):
            writer.scalars(1, {"loss": 1.0})


def test_a_directory_that_is_a_file_is_named(tmp_path):
    (tmp_path / "tokenizer").touch()
    with pytest.raises(OSError, match="tokenizer cannot be written .*permissions"):
        Writer(tmp_path / "tokenizer")


def test_image_is_stored_without_loss_and_replaced(tmp_path):
    image_hwc = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    with Writer(tmp_path) as writer:
        writer.image(0, "samples/class_1.0", 255 - image_hwc)
        writer.image(1, "samples/class_1.0", image_hwc)
    with Image.open(tmp_path / "pictures/samples/class_1.0.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), image_hwc)
    assert [path.name for path in (tmp_path / "pictures/samples").iterdir()] == ["class_1.0.png"]


def test_animation_keeps_its_frames_and_their_duration(tmp_path):
    frames = [np.full((8, 8, 3), level, np.uint8) for level in (0, 128, 255)]
    with Writer(tmp_path) as writer:
        writer.animation("scales", frames, 120)
    with Image.open(tmp_path / "pictures/scales.gif") as gif:
        assert (gif.n_frames, gif.info["duration"], gif.info["loop"]) == (3, 120, 0)
        for index, frame_hwc in enumerate(frames):
            gif.seek(index)
            np.testing.assert_array_equal(np.asarray(gif.convert("RGB")), frame_hwc)


def test_tensorboard_shows_every_step_once_after_a_kill(tmp_path):
    """The first writer is not closed, so that anything it does not write at once is lost."""
    killed = Writer(tmp_path)
    for step in range(1, 7):
        killed.scalars(step, {"loss": step})
    time.sleep(1.1)  # the name of an event file tells its second
    with Writer(tmp_path, resume_step=4) as resumed:
        for step in range(5, 9):
            resumed.scalars(step, {"loss": 10 * step})
    shown = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in shown] == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 50), (6, 60), (7, 70),
                                                              (8, 80)]
    killed.close()


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8)])
def test_images_of_another_kind_are_refused(tmp_path, image):
    with Writer(tmp_path) as writer, pytest.raises(ValueError, match="uint8"):
        writer.image(0, "samples", image)


def test_animation_without_frames_is_refused(tmp_path):
    with Writer(tmp_path) as writer, pytest.raises(ValueError, match="no frames"):
        writer.animation("scales", [], 120)


def test_a_failed_write_leaves_the_former_file_alone(tmp_path, monkeypatch):
    with Writer(tmp_path) as writer:
        writer.json("report", {"fid": 1.0})

        def fail(*_):
            raise OSError("disk full")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            writer.json("report", {"fid": 2.0})
    assert json.loads((tmp_path / "report.json").read_text()) == {"fid": 1.0}
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with Writer(tmp_path / "generator") as writer:
        writer.scalars(0, {"loss": 1.0})
        writer.image(0, "samples", np.zeros((4, 4, 3), np.uint8))
        writer.animation("scales", [np.zeros((4, 4, 3), np.uint8)], 100)
        writer.json("report", {})
    assert not list(tmp_path.iterdir())
