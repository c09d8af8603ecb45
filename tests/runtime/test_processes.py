"""Two real processes with four simulated devices each, real checkpoints and real signals."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from refocus_jax.runtime import processes
from refocus_jax.runtime.checkpoint import Checkpoints
from refocus_jax.runtime.lease import Lease
from refocus_jax.runtime.preemption import EXIT_CODE
from tests.fixtures import worker, xla

STARTED = 60  # seconds, at most, until a process has made its first steps on a busy machine


def start(directory, steps, seconds_per_step=0.0):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"XLA_FLAGS": xla.flags(devices=4)}
    return [subprocess.Popen([sys.executable, "-m", "tests.fixtures.worker", str(directory), str(steps),
                              str(seconds_per_step), "2", str(i), str(port)], env=environment, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for i in range(2)]


def finish(started, seconds=STARTED):
    """Returns exit codes and printed text; a process that hangs is an error."""
    try:
        return [(process.communicate(timeout=seconds)[0], process.returncode)[::-1] for process in started]
    finally:
        for process in started:
            process.kill()


def wait_for_step(directory, step):
    until = time.monotonic() + STARTED
    while time.monotonic() < until:
        path = directory / "metrics.jsonl"
        if path.exists() and path.read_text().count("\n") > step:
            return
        time.sleep(0.05)
    raise TimeoutError(f"step {step} was not reached")


def losses(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss/total"] for line in lines if "loss/total" in line}


def test_two_processes_do_what_one_does_and_one_goes_on_where_two_stopped(tmp_path):
    """8 steps of 16 are two passes over the 64 examples: each process takes its part, without overlap or loss."""
    codes = finish(start(tmp_path / "two", 8))
    assert [code for code, _ in codes] == [0, 0], codes
    one = worker.train(str(tmp_path / "one"), 8, 0.0)  # on this process's two devices
    np.testing.assert_array_equal(one.seen, 2)
    with Checkpoints(tmp_path / "two" / "checkpoints") as checkpoints:
        two = checkpoints.restore(jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), one))
    np.testing.assert_array_equal(two.seen, 2)
    np.testing.assert_allclose(two.w, one.w, atol=1e-6)
    further, straight = (worker.train(str(tmp_path / name), 11, 0.0) for name in ("two", "one"))
    np.testing.assert_allclose(further.w, straight.w, atol=1e-6)
    for step, loss in losses(tmp_path / "one").items():
        assert losses(tmp_path / "two")[step] == pytest.approx(loss, abs=1e-6)


def test_a_wish_to_stop_reaches_all_and_all_stop_at_one_step(tmp_path):
    started = start(tmp_path, 200, 0.2)
    wait_for_step(tmp_path, 4)
    started[1].send_signal(signal.SIGTERM)  # one of them alone
    codes = finish(started)
    assert [code for code, _ in codes] == [EXIT_CODE, EXIT_CODE], codes
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        step = checkpoints.latest_step()
    assert step < 200 and all(f"has saved step {step};" in printed for _, printed in codes)


@pytest.mark.parametrize(("victim", "with_signal"), [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_when_one_dies_or_hangs_the_others_end_with_an_error(tmp_path, victim, with_signal):
    started = start(tmp_path, 2000, 0.1)
    wait_for_step(tmp_path, 3)
    started[victim].send_signal(with_signal)
    began = time.monotonic()
    try:
        code = started[1 - victim].wait(timeout=4 * worker.HEARTBEAT_SECONDS)
    finally:
        finish(started[:victim] + started[victim + 1:], 10)
        started[victim].kill()
        started[victim].communicate()
    assert code not in (0, EXIT_CODE)
    assert time.monotonic() - began < 4 * worker.HEARTBEAT_SECONDS


@pytest.mark.parametrize(("arguments", "message"), [
    (("localhost:1234", 2, None), "--process_id not given"),
    ((None, 2, 0), "--coordinator not given"),
    (("localhost:1234", 2, 2), "--process_id is 2 of --num_processes 2; give 0 to 1"),
    *[((coordinator, 2, 0), f"--coordinator is '{coordinator}'; give HOST:PORT") for coordinator in (
        "localhost", "", "localhost:", ":1234", "localhost:99999999", "localhost:65536", "localhost:0", "localhost:-1",
        "localhost:http", "localhost:¹", "localhost:1 2")],
])
def test_half_an_address_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        processes.initialize(*arguments)


@pytest.mark.parametrize("coordinator", ["localhost:65535", "[::1]:1234"])
@pytest.mark.parametrize(("number", "waits"), [(1, "process 1 of 3 waits for process 0 at {}, for "),
                                               (0, "process 0 waits at {} for the other 2, for ")])
def test_who_waits_for_others_says_so_every_now_and_then(monkeypatch, caplog, coordinator, number, waits):
    monkeypatch.setattr(processes, "SAY_SECONDS", 0.1)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: time.sleep(0.35))
    processes.initialize(coordinator, 3, number)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) in (2, 3) and all(line.startswith(waits.format(coordinator)) for line in said)
    time.sleep(0.2)
    assert len(caplog.records) == len(said)


def test_all_processes_of_a_second_run_are_refused_with_one_message(tmp_path):
    with Lease(tmp_path, "encode"):
        codes = finish(start(tmp_path, 2))
    for code, printed in codes:
        assert code == 1 and f"{tmp_path} is being written by process {os.getpid()} on " in printed.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("environment", "found"), [
    ({}, False),
    ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}, True),
    ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}, False),
    ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, False),  # the batch script itself, outside srun
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
])
def test_several_processes_are_found_where_jax_can_find_them(monkeypatch, environment, found):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TPU_"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    called = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kwargs: called.append(args))
    processes.initialize()
    assert bool(called) == found


def test_processes_that_see_other_data_are_refused(monkeypatch):
    processes.check_same("data.source", "14 images")
    monkeypatch.setattr(processes.multihost_utils, "process_allgather",
                        lambda digest: np.stack([digest, digest, digest + 1]))
    with pytest.raises(ValueError, match="data.source is not the same in process 0 and in 2. Here it is 14 images"):
        processes.check_same("data.source", "14 images")


def test_what_the_first_process_finds_all_know(monkeypatch):
    """A result, or an error with its message; the function is called in process 0 only."""
    sent = []

    def run(index, function):
        monkeypatch.setattr(jax, "process_index", lambda: index)
        return processes.from_first(function)

    def broadcast(value):
        if jax.process_index() == 0:
            sent.append(np.array(value))
            return value
        assert np.shape(value) == sent[0].shape
        return sent.pop(0)

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes.multihost_utils, "broadcast_one_to_all", broadcast)
    for answer in ({"a": [1, "é"]}, 3, None, False, ""):
        assert run(0, lambda answer=answer: answer) == answer == run(1, None) and not sent

    def fail():
        raise OSError("disk é is full")

    with pytest.raises(OSError, match="disk é is full"):
        run(0, fail)
    with pytest.raises(RuntimeError, match="disk é is full"):
        run(1, None)
