"""launch/tpu_pod.sh: the commands it prints, those it runs where `gcloud` is a stand-in, and what it refuses."""

import os
import shlex
import subprocess
import time
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
    """A `gcloud` that runs --command on this machine, in its own home, except those that install something. A `python`
    there notes what it got and does what a line of the file `does` says; `describe` answers with one line of `states`
    after the other, and fails where there is none."""
    programs, home = tmp_path / "programs", tmp_path / "home"
    python = home / "refocus_jax" / ".venv" / "bin" / "python"
    (tmp_path / "does").write_text("")
    notes = f"""
        printf "%s\\n" "$TFDS_DATA_DIR" "$@" > {tmp_path}/arguments
        echo trained >> {tmp_path}/actions
        does=$(head -1 {tmp_path}/does); sed -i 1d {tmp_path}/does; eval "$does\""""
    for path, body in ((programs / "sleep", "true"), (python, notes),
                       (programs / "gcloud", f"""
                           for word in "$@"; do case $word in
                               create | delete | scp) echo $word >> {tmp_path}/actions ;;
                               --command=*apt-get* | --command=*tar* | --command=*uv*) ;;
                               describe) state=$(head -1 {tmp_path}/states); sed -i 1d {tmp_path}/states
                                   [[ $state ]] && echo $state || exit 1 ;;
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
    assert "uv pip install -q -e '.[tpu,tfds,report,gcs]'" in environment[-1]


def test_run_starts_the_program_on_all_machines_and_follows_the_first():
    start, follow, code = printed("run", *FLAGS)
    assert start[:-1] == ON_ALL
    assert follow[:-1] == code[:-1] == [*ON_ALL[:-1], "--worker=0"]
    for command in (start, follow, code):
        assert subprocess.run(["bash", "-n", "-c", command[-1].removeprefix("--command=")]).returncode == 0


def test_flags_arrive_where_the_command_is_run(stand_in):
    directory, environment = stand_in
    process = launch("run", *FLAGS, **environment)
    assert process.returncode == 0, process.stderr
    assert (directory / "arguments").read_text().splitlines() == [
        "/mnt/shared/tensorflow_datasets", "-m", "refocus_jax.main", *FLAGS]


def test_what_the_program_says_is_shown_and_its_code_returned(stand_in):
    directory, environment = stand_in
    (directory / "does").write_text("echo step 1; echo broken >&2; exit 3\n")
    process = launch("run", *FLAGS, **environment)
    assert process.returncode == 3 and process.stdout.splitlines() == ["step 1", "broken"] * 2  # followed, and its end


def test_a_running_training_is_followed_and_can_be_stopped(stand_in):
    directory, environment = stand_in
    (directory / "does").write_text(
        "trap 'echo saved; exit 75' TERM; echo begun; while true; do /bin/sleep 0.1; done\n")
    first, second = (subprocess.Popen(["bash", str(SCRIPT), "run", *FLAGS], env=environment, stdout=subprocess.PIPE,
                                      text=True) for _ in range(2) if not time.sleep(0.5))
    assert [process.stdout.readline() for process in (first, second)] == ["begun\n"] * 2
    assert launch("stop", **environment).returncode == 0
    assert [(process.communicate()[0], process.returncode) for process in (first, second)] == [("saved\n", 75)] * 2
    assert (directory / "actions").read_text().split() == ["trained"]


@pytest.mark.parametrize(("states", "does", "actions", "code"), [
    ("ACTIVE\n", "exit 0\n", "trained", 0),
    ("\nACTIVE\n", "exit 0\n", "create scp trained", 0),
    ("ACTIVE\nACTIVE\n", "exit 75\nexit 0\n", "trained trained", 0),
    ("ACTIVE\n", "exit 1\n", "trained", 1),
    # The slice is taken away together with the program; the next one is not available at first.
    ("ACTIVE\nSUSPENDED\nSUSPENDED\nFAILED\nFAILED\nACTIVE\n", "kill -9 $PPID\nexit 0\n",
     "trained delete create delete create scp trained", 0),
    ("ACTIVE\nACTIVE\n", "{ /bin/sleep 1; echo 0 > run.code; } & kill -9 $PPID\n", "trained", 0),  # a lost connection
], ids=["a slice", "no slice", "preempted", "failed", "taken away", "connection lost"])
def test_train_goes_on_until_the_run_is_done(stand_in, states, does, actions, code):
    directory, environment = stand_in
    (directory / "states").write_text(states)
    (directory / "does").write_text(does)
    process = launch("train", *FLAGS, **environment)
    assert process.returncode == code, process.stderr
    assert (directory / "actions").read_text().split() == actions.split()


def test_a_bucket_needs_no_shared_file_system():
    settings = {name: value for name, value in SETTINGS.items() if name != "TPU_NFS"}
    assert launch("--dry-run", "run", "--workdir=gs://bucket/run", **settings).returncode == 0
    assert "mount" not in launch("--dry-run", "install", **settings).stdout
    process = launch("--dry-run", "run", "--workdir=/mnt/shared/run", **settings)
    assert process.returncode == 2 and "give --workdir=gs://BUCKET/..., or TPU_NFS and" in process.stderr


def test_several_slices_train_together():
    several = {"TPU_NODE_COUNT": "2", "TPU_NETWORK": "net", "TPU_SUBNETWORK": "sub", "TPU_SERVICE_ACCOUNT": "me@x"}
    create, _ = printed("create", **several)
    assert create == [*QUEUED, "create", "pod", "--node-count=2", "--node-prefix=pod", "--zone=us-central1-a",
                      "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--network=net",
                      "--subnetwork=sub", "--service-account=me@x"]
    assert [command[5] for command in printed("run", *FLAGS, **several)] == ["pod-0", "pod-1", "pod-0", "pod-0"]
    install = printed("install", **several)
    assert [command[5] for command in install if command[4:5] == ["ssh"]] == ["pod-0", "pod-1"] * 3


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
    ("run", "TPU_ZONE"), ("delete", "TPU_NAME")])
def test_a_missing_setting_is_named(action, missing):
    settings = {name: value for name, value in SETTINGS.items() if name != missing}
    process = launch("--dry-run", action, **settings)
    assert process.returncode == 2 and process.stdout == ""
    assert f"{missing} is not set; give it, for example: export {missing}=" in process.stderr


@pytest.mark.parametrize(("arguments", "message"), [
    ((), "the action is ''; give train, or create, install, run, stop or delete"),
    (("start",), "the action is 'start'"),
    (("delete", "--workdir=/mnt/shared/run"), "delete takes no arguments, but got: --workdir=/mnt/shared/run"),
    (("run", "--config=configs/tiny.py"), "--workdir is ''; give --workdir=gs://BUCKET/..., or TPU_NFS and"),
    (("run", "--workdir=runs/tiny"), "--workdir is 'runs/tiny'; give --workdir=gs://BUCKET/..."),
    (("train", "--workdir=runs/tiny"), "--workdir is 'runs/tiny'; give --workdir=gs://BUCKET/..."),
    (("train", *FLAGS), "train decides by what it sees, so it has no dry run"),
])
def test_what_cannot_work_is_refused(arguments, message):
    process = launch("--dry-run", *arguments, **SETTINGS)
    assert process.returncode == 2 and process.stdout == "" and message in process.stderr
