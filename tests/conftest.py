"""All tests run on two simulated CPU devices, with fast compilation and without silent broadcasting."""

import gc
import os
import sys
import tempfile
from pathlib import Path

from tests.fixtures import xla

# JAX reads these variables when it is first imported, also in the processes that tests start.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla.flags(devices=2)}"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(not xla.OPTIMIZED))  # tests are mostly compilation
# The same program is compiled once for all tests of a session, however many functions it is jitted from, in however
# many processes. The workers that pytest-xdist starts find the folder in their environment.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax
import numpy as np
import pytest

from refocus_jax.runtime import memory
from refocus_jax.runtime import mesh as mesh_lib
from tests.fixtures import bucket as emulator
from tests.fixtures import micro as micro_config
from tests.fixtures import unmeasured as no_evaluation

jax.config.update("jax_numpy_rank_promotion", "raise")
memory.collect_less_often()
mesh_lib.start_enough_threads()

# The files that take longest. They start first, so that no worker is left with one of them when the others have ended.
LONGEST = ("modes/test_train.py", "training/test_generator_task.py", "training/test_tokenizer_task.py",
           "test_processes.py", "test_accelerator.py", "modes/test_mvar.py", "modes/test_plan.py",
           "pretrained/test_loading.py", "training/test_meshes.py", "pretrained/test_scales.py", "test_study.py",
           "runtime/test_processes.py", "config/test_stages.py")


def pytest_collection_modifyitems(items):
    """Puts the files that take longest first; the workers of pytest-xdist take files in this order."""
    root = Path(__file__).parent
    order = {root / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(LONGEST)))


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Forgets a module's compiled programs at its end, because all together take gigabytes."""
    yield
    jax.clear_caches()
    gc.collect()
    memory.trim()


@pytest.fixture
def hide(monkeypatch):
    """A function that makes modules look as if they were not installed."""
    return lambda *modules: [monkeypatch.setitem(sys.modules, module, None) for module in modules]


@pytest.fixture
def unmeasured(monkeypatch):
    """Stage 2 measures nothing held-out and draws nothing: for tests that ask only which parameters a run has."""
    monkeypatch.setattr("refocus_jax.training.evaluators.GeneratorEvaluator.__call__", no_evaluation.evaluate)


@pytest.fixture(scope="session")
def micro():
    """The config of fixtures/micro.py; a function, because configs are mutable."""
    return micro_config.get_config


@pytest.fixture(scope="module")
def bucket_address():
    """The address of a bucket on this machine."""
    with emulator.serve() as address:
        yield address


@pytest.fixture
def url(bucket_address, tmp_path, monkeypatch):
    """A new place in the bucket, staged below a home of its own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return f"{bucket_address}/{tmp_path.name}/run"


@pytest.fixture(scope="session")
def images():
    """(64, 8, 8, 3) uint8: smooth random images, the same every time."""
    coarse = np.random.default_rng(0).uniform(0, 255, (64, 2, 2, 3))
    return np.asarray(jax.image.resize(coarse, (64, 8, 8, 3), "linear")).astype(np.uint8)
