"""Leases of this process, of real processes that are killed, and of pretended processes on other machines."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from refocus_jax.runtime import lease
from refocus_jax.runtime.checkpoint import Checkpoints
from refocus_jax.runtime.files import write_json
from refocus_jax.runtime.lease import Lease, LeaseError
from refocus_jax.runtime.writer import Writer

HOLD = """
import sys, time
from refocus_jax.runtime.lease import Lease
with Lease(sys.argv[1], "train"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Shortens all times to a tenth."""
    for name in ("BEAT_SECONDS", "WATCH_SECONDS", "_LOOK_SECONDS"):
        monkeypatch.setattr(lease, name, getattr(lease, name) / 10)


@pytest.fixture
def holder(tmp_path):
    """A process that holds tmp_path / "run"."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def pretend(directory: Path, **changes) -> Path:
    """Writes the lease file of a holder on another machine, which is dead unless somebody touches the file."""
    directory.mkdir(exist_ok=True)
    path = directory / ".writer.json"
    path.write_text(json.dumps(lease.describe_self("encode") | {
        "host": "elsewhere", "process": 7, "machine": "another", **changes}))
    return path


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def take(directory: Path) -> None:
    with Lease(directory, "sample"):
        assert files(directory) == [".writer.json"]
    assert not directory.exists() or not files(directory)


def test_a_second_one_is_refused_and_told_who_holds_it(holder, tmp_path):
    began = time.monotonic()
    with pytest.raises(LeaseError, match=rf"run is being written by process {holder.pid} on .* \(--mode=train, since "
                                         r"20.*\); wait until that run ends or stop it, or give another directory"):
        take(tmp_path / "run")
    assert time.monotonic() - began < 0.5 and files(tmp_path / "run") == [".writer.json"]


def test_a_killed_one_is_succeeded_at_once(holder, tmp_path, caplog):
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has asked yet how
    began = time.monotonic()
    take(tmp_path / "run")
    assert time.monotonic() - began < 0.5
    assert f"was held by process {holder.pid}" in caplog.text and "is dead; this run continues" in caplog.text


def test_one_that_was_stopped_and_is_taken_over_writes_no_more(tmp_path):
    with Writer(tmp_path / "run") as writer, Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        with Lease(tmp_path / "run", "train"):
            write_json(tmp_path / "run" / "a.json", {})
            writer.scalars(1, {"loss": 1.0})
            pretend(tmp_path / "run")  # as one does that has watched for long enough
            for write in (lambda: write_json(tmp_path / "run" / "b.json", {}),
                          lambda: writer.scalars(2, {"loss": 1.0}),
                          lambda: writer.image(2, "picture", np.zeros((4, 4, 3), np.uint8)),
                          lambda: checkpoints.save(2, {"x": np.zeros(2)})):
                with pytest.raises(LeaseError, match="may no longer write into .*run, and stops: process 7 on elsewhere"
                                                     ".* has taken it over, .* start the same command again"):
                    write()
            time.sleep(0.5)  # some beats
        assert json.loads((tmp_path / "run" / ".writer.json").read_text())["process"] == 7  # which is not removed
        assert not {"b.json", "pictures", "checkpoints"} & set(files(tmp_path / "run"))
        assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 1


def test_one_whose_file_is_removed_stops(tmp_path):
    with Lease(tmp_path, "train"):
        (tmp_path / ".writer.json").unlink()
        with pytest.raises(LeaseError, match="json has been removed. Give another"):
            lease.confirm()
    lease.confirm()  # nothing is held, nothing is lost


def test_one_elsewhere_that_is_alive_is_seen_to_move(tmp_path):
    path, stop = pretend(tmp_path / "run"), threading.Event()

    def beat():
        while not stop.wait(0.2):
            os.utime(path)

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        with pytest.raises(LeaseError, match="process 7 on elsewhere"):
            take(tmp_path / "run")
    finally:
        stop.set()
        beating.join()
    assert files(tmp_path / "run") == [".writer.json"]


def test_a_holder_moves_its_file(tmp_path, monkeypatch):
    with Lease(tmp_path, "train"):
        monkeypatch.setattr(lease, "_machine", lambda: None)  # as another machine sees it
        with pytest.raises(LeaseError, match=f"process {os.getpid()} on"):
            take(tmp_path)


@pytest.mark.parametrize("content", [None, "", "{", "[1]"], ids=repr)
def test_one_elsewhere_that_is_dead_is_succeeded_after_a_while(tmp_path, content, caplog):
    path = pretend(tmp_path / "run")
    if content is not None:
        path.write_text(content)
    began = time.monotonic()
    take(tmp_path / "run")
    assert 1 <= time.monotonic() - began < 2 and "watching for 1 seconds" in caplog.text


def test_a_process_number_that_is_used_again_is_another_process(tmp_path):
    pretend(tmp_path / "run", process=os.getpid(), machine=lease._machine(), started=1)
    take(tmp_path / "run")


def test_a_job_that_slurm_has_started_again_goes_on_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setattr(lease, "WATCH_SECONDS", 60.0)
    pretend(tmp_path / "run")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    take(tmp_path / "run")


@pytest.mark.parametrize("broken_off", [False, True])
def test_of_many_that_wait_for_a_dead_one_to_go_one_succeeds(tmp_path, broken_off):
    """Also if another run has begun to take over and died before it was done."""
    path = pretend(tmp_path / "run")
    if broken_off:
        content = json.dumps(lease.describe_self("train") | {"machine": "a third"})
        lease._read(path).successor(tmp_path / "run").write_text(content)
    outcomes, ended = [], threading.Event()

    def run():
        try:
            with Lease(tmp_path / "run", "train"):
                outcomes.append("held")
                ended.wait(10)
        except LeaseError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 8
    while len(outcomes) < len(threads) and time.monotonic() < until:
        time.sleep(0.05)
    assert files(tmp_path / "run") == [".writer.json"]
    ended.set()
    for thread in threads:
        thread.join()
    assert outcomes.count("held") == 1 and len(outcomes) == len(threads)
    assert all(f"process {os.getpid()}" in outcome for outcome in outcomes if outcome != "held")


def test_who_looked_before_another_one_succeeded_succeeds_nobody(tmp_path, monkeypatch):
    pretend(tmp_path)
    look = Lease._is_dead

    def look_slowly(self, path, holder):
        monkeypatch.setattr(Lease, "_is_dead", look)
        pretend(tmp_path, host="a third", machine=lease._machine(), process=os.getpid())  # quicker, and alive
        return True

    monkeypatch.setattr(Lease, "_is_dead", look_slowly)
    with pytest.raises(LeaseError, match=f"process {os.getpid()} on a third"):
        take(tmp_path)
    assert files(tmp_path) == [".writer.json"]


def test_it_is_free_again_after_an_error_and_a_directory_that_was_made_for_nothing_is_gone(tmp_path):
    for made in (tmp_path / "new", tmp_path):
        with pytest.raises(KeyError), Lease(made, "train"):
            raise KeyError
    assert files(tmp_path) == []
    with Lease(tmp_path / "new", "train"):
        (tmp_path / "new" / "result").touch()
    assert files(tmp_path / "new") == ["result"]


def test_a_directory_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def refuse(*arguments, **keywords):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        with pytest.raises(OSError, match=r"run cannot be written \(Read-only file system\); give a dir"):
            take(tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file cannot be written .*; give a directory"):
        take(tmp_path / "file")


def test_one_that_is_suspended_is_not_dead(holder, tmp_path):
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(LeaseError, match=f"process {holder.pid}"):
        take(tmp_path / "run")
