import io
import os
import pty
import select
import termios
from types import SimpleNamespace

import jax
import pytest

from refocus_jax.runtime import progress
from refocus_jax.runtime.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_lines_come_at_intervals_and_at_the_end(clock):
    stream = io.StringIO()
    with Progress(total=10, initial=0, description="tokenizer", stream=stream) as bar:
        for step in range(1, 11):
            clock.now += 4
            bar.update(step, {"loss": 1 / step} if step % 2 else {})
    assert stream.getvalue().splitlines() == [
        "tokenizer 3/10  loss=0.3333  4.0 s/step  0:28 left",
        "tokenizer 6/10  loss=0.2  4.0 s/step  0:16 left",
        "tokenizer 9/10  loss=0.1111  4.0 s/step  0:04 left",
        "tokenizer 10/10  loss=0.1111  4.0 s/step  0:00 left",
    ]


def test_the_rate_does_not_count_steps_before_the_resume(clock):
    stream = io.StringIO()
    bar = Progress(total=20_000, initial=100, description="generator", stream=stream)
    clock.now += 10
    bar.update(120, {})
    assert stream.getvalue() == "generator 120/20000  2.0 steps/s  2:45:40 left\n"


def test_the_first_line_waits_for_the_interval(clock):
    stream = io.StringIO()
    Progress(total=5, initial=0, description="encode", stream=stream).update(1, {})
    assert not stream.getvalue()


def test_a_step_is_shown_once(clock):
    stream = io.StringIO()
    bar = Progress(total=5, initial=5, description="encode", stream=stream)
    bar.update(5, {})
    assert not stream.getvalue()


def test_terminal_shows_one_bar():
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (25, 100))  # a new one has no columns
    with os.fdopen(writer, "w") as terminal:
        with Progress(total=8, initial=2, description="tokenizer", stream=terminal) as bar:
            for step in range(3, 9):
                bar.update(step, {"loss": 0.125} if step == 5 else {})
        terminal.flush()
        shown = b""
        while select.select([reader], [], [], 1.0)[0]:  # the terminal hands its text over in pieces
            shown += os.read(reader, 65536)
        shown = shown.decode()
    os.close(reader)
    first, *_, last = shown.strip().split("\r")
    assert "2/8" in first
    assert "tokenizer: 100%" in last and "8/8" in last and "steps/s" in last and "loss=0.125" in last
    assert shown.rstrip("\r\n").count("\n") == 0


@pytest.mark.parametrize("terminal", [False, True])
def test_only_process_0_shows_progress(monkeypatch, terminal):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    with Progress(total=1, initial=0, description="tokenizer", stream=stream) as bar:
        bar.update(1, {})
    assert not stream.getvalue()
