"""launch/tpu_pod.sh: the commands it prints, those it runs where `gcloud` is a stand-in, and what it refuses."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "tpu_pod.sh"
SETTINGS = {"TPU_NAME": "pod", "TPU_ZONE": "us-central1-a", "TPU_TYPE": "v5litepod-16",
            "TPU_RUNTIME": "v2-alpha-tpuv5-lite", "TPU_NFS": "10.0.0.2:/share"}
QUEUED, MACHINES = ["gcloud", "compute", "tpus", "queued-resources"], ["gcloud", "compute", "tpus", "tpu-vm"]
ON_ALL = [*MACHINES, "ssh", "pod", "--zone=us-central1-a", "--worker=all"]
FLAGS = ["--config=configs/d24.py:k4,noteacher", "--workdir=/mnt/shared/runs/two words",
         "--config.sample.classes=('cat', 3)", "--config.data.source=tfds:imagenet2012"]


def launch(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", str(SCRIPT), *arguments], capture_output=True, text=True, timeout=30,
                          env={"PATH": os.environ["PATH"], **environment})


def printed(*arguments: str, **more: str) -> list[list[str]]:
    """The commands of a dry run, each as the words that a shell makes of its line."""
    process = launch("--dry-run", *arguments, **SETTINGS, **more)
    assert process.returncode == 0, process.stderr
    return [shlex.split(line) for line in process.stdout.splitlines()]


@pytest.fixture
def stand_in(tmp_path):
    """A `gcloud` that runs --command on this machine, in its own home, and a `python` there that notes what it got;
    `describe` answers with one line of the file `states` after the other."""
    programs, home = tmp_path / "programs", tmp_path / "home"
    python = home / "refocus_jax" / ".venv" / "bin" / "python"
    notes = f'printf "%s\\n" "$TFDS_DATA_DIR" "$@" > {tmp_path}/arguments'
    for path, body in ((programs / "sleep", "true"), (python, notes),
                       (programs / "gcloud", f"""
                           for word in "$@"; do case $word in
                               describe) head -1 {tmp_path}/states | grep . || exit 1; sed -i 1d {tmp_path}/states ;;
                               --command=*) cd {home} && bash -c "${{word#*=}}" ;;
                           esac; done""")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
    return tmp_path, {**SETTINGS, "PATH": f"{programs}:{os.environ['PATH']}"}


def test_create_asks_for_the_slice_and_for_its_state():
    create = [*QUEUED, "create", "pod", "--node-id=pod", "--zone=us-central1-a", "--accelerator-type=v5litepod-16",
              "--runtime-version=v2-alpha-tpuv5-lite"]
    describe = [*QUEUED, "describe", "pod", "--zone=us-central1-a", "--format=value(state.state)"]
    assert printed("create") == [create, describe]
    assert printed("create", TPU_SPOT="1") == [[*create, "--spot"], describe]


def test_install_copies_the_last_commit_to_all_machines():
    _, archive, copy, mount, unpack, environment = printed("install")
    assert archive == ["git", "archive", "--format=tar.gz", "--output=dist/refocus_jax.tar.gz", "HEAD"]
    assert copy == [*MACHINES, "scp", "dist/refocus_jax.tar.gz", "pod:refocus_jax.tar.gz", "--zone=us-central1-a",
                    "--worker=all"]
    for command in (mount, unpack, environment):
        assert command[:-1] == ON_ALL
        script = command[-1].removeprefix("--command=")
        assert subprocess.run(["bash", "-n", "-c", script]).returncode == 0
    assert "sudo mount -t nfs 10.0.0.2:/share /mnt/shared" in mount[-1]
    assert "tar -xzf refocus_jax.tar.gz -C refocus_jax" in unpack[-1]
    assert "uv pip install -q -e '.[tpu,tfds,report]'" in environment[-1]


def test_run_passes_every_flag_through_two_shells():
    (command,) = printed("run", *FLAGS)
    assert command[:-1] == ON_ALL
    words = shlex.split(command[-1].removeprefix("--command="))
    assert words == ["cd", "refocus_jax", "&&", "TFDS_DATA_DIR=/mnt/shared/tensorflow_datasets", "exec",
                     ".venv/bin/python", "-m", "refocus_jax.main", *FLAGS]


def test_flags_arrive_where_the_command_is_run(stand_in):
    directory, environment = stand_in
    assert launch("run", *FLAGS, **environment).returncode == 0
    assert (directory / "arguments").read_text().splitlines() == [
        "/mnt/shared/tensorflow_datasets", "-m", "refocus_jax.main", *FLAGS]


def test_delete_takes_the_machines_with_it():
    assert printed("delete") == [[*QUEUED, "delete", "pod", "--zone=us-central1-a", "--force", "--quiet"]]


def test_create_waits_until_the_slice_is_there(stand_in):
    directory, environment = stand_in
    (directory / "states").write_text("WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\nnever read\n")
    process = launch("create", **environment)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == ["pod: WAITING_FOR_RESOURCES", "pod: PROVISIONING"]
    assert (directory / "states").read_text() == "never read\n"


def test_create_says_that_the_request_failed(stand_in):
    directory, environment = stand_in
    (directory / "states").write_text("ACCEPTED\nFAILED\n")
    process = launch("create", **environment)
    assert process.returncode == 2 and "the request is FAILED" in process.stderr


def test_create_ends_when_gcloud_fails(stand_in):
    directory, environment = stand_in
    (directory / "states").write_text("ACCEPTED\n")
    assert launch("create", **environment).returncode == 1


@pytest.mark.parametrize(("action", "missing"), [
    ("create", "TPU_NAME"), ("create", "TPU_ZONE"), ("create", "TPU_TYPE"), ("create", "TPU_RUNTIME"),
    ("install", "TPU_NFS"), ("run", "TPU_ZONE"), ("delete", "TPU_NAME")])
def test_a_missing_setting_is_named(action, missing):
    settings = {name: value for name, value in SETTINGS.items() if name != missing}
    process = launch("--dry-run", action, **settings)
    assert process.returncode == 2 and process.stdout == ""
    assert f"{missing} is not set; give it, for example: export {missing}=" in process.stderr


@pytest.mark.parametrize(("arguments", "message"), [
    ((), "the action is ''; give create, install, run or delete"),
    (("start",), "the action is 'start'"),
    (("delete", "--workdir=/mnt/shared/run"), "delete takes no arguments, but got: --workdir=/mnt/shared/run"),
    (("run", "--config=configs/tiny.py"), "--workdir is ''; give --workdir=/mnt/shared/..."),
    (("run", "--workdir=runs/tiny"), "--workdir is 'runs/tiny'; give --workdir=/mnt/shared/..."),
])
def test_what_cannot_work_is_refused(arguments, message):
    process = launch("--dry-run", *arguments, **SETTINGS)
    assert process.returncode == 2 and process.stdout == "" and message in process.stderr
