"""launch/slurm.sbatch with stand-ins for Slurm's commands: what it starts, and when it requeues itself."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from refocus_jax.runtime import preemption

SCRIPT = Path(__file__).parents[2] / "launch" / "slurm.sbatch"


@pytest.fixture
def submit(tmp_path):
    """Runs the script where `srun` exits with `status` and `squeue` says `state`; its exit code and Slurm's calls."""
    calls = tmp_path / "calls"

    def run(*arguments: str, status: int = 0, state: str = "RUNNING", **environment: str):
        for command, does in (("srun", f"exit {status}"), ("squeue", f"echo {state}"), ("scontrol", "true")):
            path = tmp_path / command
            path.write_text(f'#!/bin/sh\nfor word in {command} "$@" ""; do echo "$word" >> {calls}; done\n{does}\n')
            path.chmod(0o755)
        calls.write_text("")
        process = subprocess.run(["bash", str(SCRIPT), *arguments], capture_output=True, text=True, timeout=30, env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", **environment})
        return process.returncode, [call.split("\n") for call in calls.read_text().removesuffix("\n\n").split("\n\n")]

    return run


def requeued(calls: list[list[str]]) -> bool:
    return ["scontrol", "requeue", "7"] in calls


def test_arguments_reach_main_unchanged(submit):
    arguments = ["--config=configs/tiny.py:smoke", "--config.sample.classes=('cat', 3)", "--workdir=/shared/two words"]
    status, calls = submit(*arguments, SLURM_CPUS_PER_TASK="12")
    assert status == 0 and not requeued(calls)
    command, *options, python, minus_m, module = calls[0][:-len(arguments)]
    assert calls[0][-len(arguments):] == arguments
    assert (command, python, minus_m, module) == ("srun", "python", "-m", "refocus_jax.main")
    assert "--cpus-per-task=12" in options


STOPPED = (preemption.EXIT_CODE, 128 + signal.SIGTERM)  # with something to save, or without


@pytest.mark.parametrize("status", STOPPED)
def test_a_preempted_run_goes_back_into_the_queue(submit, status):
    returned, calls = submit(status=status)
    assert returned == status and requeued(calls)


@pytest.mark.parametrize("status", [0, 1, 137])
def test_an_end_or_an_error_does_not(submit, status):
    returned, calls = submit(status=status)
    assert returned == status and not requeued(calls)


@pytest.mark.parametrize("status", STOPPED)
@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PENDING"])
def test_what_slurm_itself_has_ended_stays_as_slurm_decided(submit, status, state):
    returned, calls = submit(status=status, state=state)
    assert returned == status and not requeued(calls)


def test_slurm_is_asked_for_the_signal_and_for_requeueing():
    directives = [line.removeprefix("#SBATCH ") for line in SCRIPT.read_text().splitlines() if "#SBATCH" in line]
    assert "--requeue" in directives and "--open-mode=append" in directives
    assert any(directive.startswith("--signal=TERM@") for directive in directives)
