import io
import os
import pty
import re
import select
import termios
import time
from types import SimpleNamespace

import jax
import pytest

from refocus_jax.runtime import progress
from refocus_jax.runtime.progress import Phase, Progress


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
        "tokenizer: compiling (can take minutes the first time): 4.0 s",
        "tokenizer 4/10  loss=0.3333  4.0 s/step  0:24 left",
        "tokenizer 7/10  loss=0.1429  4.0 s/step  0:12 left",
        "tokenizer 10/10  loss=0.1111  4.0 s/step  0:00 left",
    ]


def test_the_rate_counts_neither_compilation_nor_steps_before_the_resume_nor_evaluations(clock):
    stream = io.StringIO()
    bar = Progress(total=20_000, initial=100, description="generator", stream=stream)
    clock.now += 100
    bar.update(101, {})
    clock.now += 6
    bar.update(113, {})
    with bar.during("evaluating"):
        clock.now += 75
    clock.now += 4
    bar.update(121, {})
    assert stream.getvalue().splitlines() == [
        "generator: compiling (can take minutes the first time): 1:40 minutes", "generator: evaluating: 1:15 minutes",
        "generator 121/20000  2.0 steps/s  2:45:40 left"]


def test_a_long_phase_shows_that_it_goes_on(monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_OF_SILENCE", 0.0)
    stream = io.StringIO()
    with Phase("reading", stream, interval_seconds=0.05):
        while stream.getvalue().count("\n") < 3:
            time.sleep(0.01)
    *going_on, end = stream.getvalue().splitlines()
    assert set(going_on) == {"reading ..."} and re.fullmatch(r"reading: \d\.\d s", end)


def test_a_phase_that_fails_does_not_say_that_it_is_complete():
    stream = io.StringIO()
    with pytest.raises(ValueError), Phase("reading", stream):
        raise ValueError
    assert stream.getvalue() == ""
    with Progress(total=5, initial=0, description="encode", stream=stream):
        pass
    assert stream.getvalue() == ""


def test_the_first_line_waits_for_the_interval(clock):
    stream = io.StringIO()
    bar = Progress(total=5, initial=0, description="encode", stream=stream)
    bar.update(1, {})
    clock.now += 9
    bar.update(2, {})
    assert stream.getvalue() == "encode: compiling (can take minutes the first time): 0.0 s\n"


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
            with bar.during("evaluating"):
                pass
        terminal.flush()
        shown = b""
        while select.select([reader], [], [], 1.0)[0]:  # the terminal hands its text over in pieces
            shown += os.read(reader, 65536)
        shown = shown.decode()
    os.close(reader)
    compiling, bars, last = [[part for part in line.replace("\x1b[K", "").split("\r") if part.strip()]
                             for line in shown.strip().split("\n")]
    assert len(compiling) == 1 and compiling[0].startswith("tokenizer: compiling")
    assert bars[0].startswith("tokenizer |█") and "3/8, ? left, ? steps/s" in bars[0]  # the clock starts after step 3
    assert bars[-1] == "tokenizer: evaluating: 0.0 s"
    assert last[-1].startswith("tokenizer loss=0.125 |█") and "8/8, 00:00 left, " in last[-1]


@pytest.mark.parametrize("terminal", [False, True])
def test_only_process_0_shows_progress(monkeypatch, terminal):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    with Progress(total=1, initial=0, description="tokenizer", stream=stream) as bar:
        bar.update(1, {})
    assert not stream.getvalue()
