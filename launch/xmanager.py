"""Trains through XManager, on this machine or on Google Cloud's Vertex AI. From the repository's root:

    python -m launch.xmanager -- --config=tiny:smoke --workdir=runs/smoke
    python -m launch.xmanager --gpus=8 -- --config=d16 --workdir=/gcs/BUCKET/runs/d16

The flags after `--` are those of `refocus_jax.main`. Without --gpus, the run is a process on this machine in this
Python environment. With it, the last commit is put into an image (by Docker or Cloud Build), pushed, and run on one
machine with that many A100s. XManager reads GOOGLE_CLOUD_PROJECT and GOOGLE_CLOUD_BUCKET_NAME; buckets are mounted in
/gcs there, and TFDS_DATA_DIR is passed on. The same command resumes a run that was stopped.

Do not use `xmanager launch launch/xmanager.py`, which imports this file by its bare name and finds the package instead.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import app, flags
from xmanager import xm, xm_local

BASE_IMAGE = "python:3.12"  # CUDA comes with jax's wheels

_GPUS = flags.DEFINE_integer("gpus", None, "A100s of a machine of Vertex AI; by default, the run is on this machine.",
                             lower_bound=1)


def on_this_machine(arguments: list[str]) -> tuple[xm.Packageable, xm.Executor]:
    """Makes a process of this Python on this machine."""
    executor = xm_local.Local()
    return xm.binary(executor.Spec(), path=sys.executable, args=["-m", "refocus_jax.main", *arguments]), executor


def on_vertex(arguments: list[str], gpus: int, folder: Path) -> tuple[xm.Packageable, xm.Executor]:
    """Makes a container of the last commit, whose files are put into `folder`, on a machine with `gpus` A100s."""
    executor = xm_local.Vertex(requirements=xm.JobRequirements(a100=gpus))
    folder.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=Path(__file__).resolve().parents[1], check=True,
                             capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    return xm.python_container(
        executor.Spec(),
        path=str(folder),
        base_image=BASE_IMAGE,
        docker_instructions=[f"COPY {folder.name} /{folder.name}", f"WORKDIR /{folder.name}",
                             "RUN pip install -e '.[cuda13,tfds,report]'"],
        entrypoint=xm.ModuleName("refocus_jax.main"),
        args=arguments,
        env_vars={name: os.environ[name] for name in ("TFDS_DATA_DIR",) if name in os.environ}), executor


def main(argv: list[str]) -> None:
    arguments = argv[1:]
    for name in ("config", "workdir"):
        if not any(argument.startswith(f"--{name}=") for argument in arguments):
            raise app.UsageError(f"give --{name}=... after `--`")
    with tempfile.TemporaryDirectory() as scratch, xm_local.create_experiment("refocus_jax") as experiment:
        packageable, executor = (on_vertex(arguments, _GPUS.value, Path(scratch, "refocus_jax")) if _GPUS.value
                                 else on_this_machine(arguments))
        (executable,) = experiment.package([packageable])
        experiment.add(xm.Job(executable, executor))


if __name__ == "__main__":
    app.run(main)
