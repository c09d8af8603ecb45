"""Benchmarks are not run by tests, but each must still find what it imports, and say how it is run."""

import importlib
from pathlib import Path

import pytest

import benchmarks

FOLDER = Path(benchmarks.__path__[0])
SHARED = "timing"  # what several benchmarks use, which is not run
NAMES = sorted({path.stem for path in FOLDER.glob("*.py")} - {SHARED} | {
    path.parent.name for path in FOLDER.glob("*/__main__.py")})


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_imports(name):
    assert f"python -m benchmarks.{name}" in (importlib.import_module(f"benchmarks.{name}").__doc__ or "")
