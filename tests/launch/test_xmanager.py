"""launch/xmanager.py against a stub of the xmanager package: what is packaged, where it would run, and with what."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUB = Path(__file__).parent / "stub"
FLAGS = ["--config=configs/d16.py:k4,noteacher", "--workdir=/gcs/bucket/two words", "--config.sample.classes=('cat', "
                                                                                    "3)"]


@pytest.fixture
def launch(tmp_path):
    """Runs the launcher; the process, and what the stub has recorded, if anything."""

    def run(*arguments: str, **environment: str):
        record = tmp_path / "record.json"
        process = subprocess.run(
            [sys.executable, "-m", "launch.xmanager", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(STUB), "RECORD": str(record), **environment})
        return process, json.loads(record.read_text()) if record.exists() else None

    return run


def test_a_run_on_this_machine_is_a_process_of_this_python(launch):
    process, record = launch("--", *FLAGS)
    assert process.returncode == 0, process.stderr
    (job,) = record["jobs"]
    assert (job["executor"], job["executable"]["spec"], job["executable"]["kind"]) == ("Local", "LocalSpec", "binary")
    assert Path(job["executable"]["path"]).samefile(sys.executable)
    assert job["executable"]["args"] == ["-m", "refocus_jax.main", *FLAGS]


def test_a_run_on_vertex_is_a_container_on_a_machine_with_gpus(launch):
    process, record = launch("--gpus=8", "--", *FLAGS, TFDS_DATA_DIR="/gcs/bucket/tfds")
    assert process.returncode == 0, process.stderr
    (job,) = record["jobs"]
    executable = job["executable"]
    assert (job["executor"], job["requirements"]) == ("Vertex", {"a100": 8})
    assert (executable["spec"], executable["kind"]) == ("VertexSpec", "python_container")
    assert (executable["module"], executable["args"]) == ("refocus_jax.main", FLAGS)
    assert executable["env_vars"] == {"TFDS_DATA_DIR": "/gcs/bucket/tfds"}
    # The folder's files are copied to where they are installed and started.
    copy, workdir, install = executable["docker_instructions"]
    name = Path(executable["path"]).name
    assert copy == f"COPY {name} /{name}" and workdir == f"WORKDIR /{name}"
    assert "pip install -e '.[cuda13,tfds,report]'" in install


def test_the_image_is_made_of_the_last_commit(launch):
    _, record = launch("--gpus=1", "--", *FLAGS)
    committed = subprocess.run(["git", "ls-tree", "-r", "--name-only", "HEAD"], cwd=ROOT, check=True, text=True,
                               capture_output=True).stdout.splitlines()
    executable = record["jobs"][0]["executable"]
    assert executable["files"] == sorted(committed)
    assert not Path(executable["path"]).exists()  # and no file is left behind


@pytest.mark.parametrize(("arguments", "message"), [
    (["--", "--config=configs/tiny.py"], "give --workdir=... after `--`"),
    (["--", "--workdir=runs/tiny"], "give --config=... after `--`"),
    (["--config=configs/tiny.py", "--workdir=runs/tiny"], "config"),
    (["--gpus=0", "--", *FLAGS], "gpus"),
])
def test_what_cannot_work_is_refused(launch, arguments, message):
    process, record = launch(*arguments)
    assert process.returncode == 1 and record is None
    assert message in process.stdout + process.stderr
