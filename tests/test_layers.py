"""Imports go in one direction, and outside packages with side effects are imported only in some rooms."""

import ast
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

import refocus_jax

ROOT = Path(refocus_jax.__file__).parent
# Each room imports only itself and rooms before it. `__init__` is the root package.
ORDER = ("__init__", "focus", "models", "sampling", "runtime", "data", "judges", "evaluation", "instruments",
         "training", "planning", "config", "pretrained", "reporting", "demo", "modes", "main")
LEVELS = {name: level for level, name in enumerate(ORDER)}
# Outside modules and the only files or rooms that may import them.
ROOMS = {
    "orbax": {"runtime/checkpoint.py"},
    "tensorboardX": {"runtime/writer.py"},
    "ml_collections": {"config", "pretrained", "modes", "main.py"},
    "matplotlib": {"reporting/charts.py"},
    "jinja2": {"reporting/page.py"},
    "google": {"runtime/bucket.py", "runtime/bucket_lease.py"},
    "etils": {"runtime/bucket.py"},
    "wandb": {"runtime/mirror.py"},
    "gradio": {"demo/page.py", "demo/parts.py"},
    "tensorflow_datasets": {"data/tfds.py"},
    "pyarrow": {"data/parquet.py"},
    "jax._src": {"planning/targets.py"},
    "jax.experimental": {"models/attention.py", "planning/targets.py", "runtime"},
    "torch": set(),
    "tensorflow": set(),
    "clu.metric_writers": set(),  # imports TensorFlow, as does the next
    "clu.periodic_actions": set(),
}
PURE_LAYERS = ("focus", "models")
INPUT_OUTPUT_MODULES = ("io", "logging", "os", "pathlib", "shutil", "sys", "tempfile", "zipfile")
INPUT_OUTPUT_CALLS = ("input", "open", "print")


def layer_of(file: PurePosixPath) -> str:
    return PurePosixPath(file.parts[0]).stem


def imported_modules(file: PurePosixPath, tree: ast.AST) -> Iterator[str]:
    """Absolute names of all that is imported anywhere in a file, `from a import b` as `a.b`."""
    package = ("refocus_jax", *file.parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            yield from (".".join(filter(None, (*base, node.module, alias.name))) for alias in node.names)


def violations(file: PurePosixPath, source: str) -> list[str]:
    """Lists what a file (path relative to the package) imports or calls against the rules."""
    tree, layer = ast.parse(source), layer_of(file)
    if layer not in LEVELS:
        return [f"{file} belongs to no layer"]
    found = []
    for module in imported_modules(file, tree):
        first, _, rest = module.partition(".")
        if first == "refocus_jax" and LEVELS.get(rest.partition(".")[0], 0) > LEVELS[layer]:
            found.append(f"{layer} imports {module}")
        if layer == "modes" and module.startswith("refocus_jax.modes"):
            found.append(f"{file} imports another mode: {module}")
        for outside, rooms in ROOMS.items():
            if f"{module}.".startswith(f"{outside}.") and not {str(file), layer} & rooms:
                found.append(f"{file} imports {module}")
        if layer in PURE_LAYERS and first in INPUT_OUTPUT_MODULES:
            found.append(f"{layer} imports {module}")
    for node in ast.walk(tree):
        if layer in PURE_LAYERS and isinstance(node, ast.Name) and node.id in INPUT_OUTPUT_CALLS:
            found.append(f"{layer} uses {node.id}")
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    assert violations(PurePosixPath(path.relative_to(ROOT).as_posix()), path.read_text()) == []


@pytest.mark.parametrize(("file", "source"), [
    ("focus/views.py", "import refocus_jax.models.attention"),
    ("focus/views.py", "from refocus_jax.models import attention"),
    ("focus/views.py", "from refocus_jax import models"),
    ("focus/__init__.py", "from ..models import attention"),
    ("models/teacher.py", "from .. import training"),
    ("data/sources.py", "def late():\n    from refocus_jax.evaluation.metrics import psnr"),
    ("training/loop.py", "def late():\n    from ..config.run import Run"),
    ("__init__.py", "from refocus_jax.focus import views"),
    ("pretrained/loading.py", "import refocus_jax.main"),
    ("config/build.py", "from refocus_jax import pretrained"),
    ("evaluation/metrics.py", "from refocus_jax.judges.features import load\nfrom refocus_jax.instruments import "
                              "wiener"),
    ("instruments/views.py", "from refocus_jax.reporting.charts import svg"),
    ("demo/page.py", "from refocus_jax.modes import sample"),
    ("reporting/page.py", "from refocus_jax.demo import cards"),
    ("demo/drawing.py", "import gradio"),
    ("modes/sample.py", "from refocus_jax.modes import train"),
    ("modes/sample.py", "from refocus_jax.modes.train import summary"),
    ("helpers.py", ""),
    ("training/loop.py", "import orbax.checkpoint as ocp"),
    ("runtime/mesh.py", "from orbax import checkpoint"),
    ("modes/train.py", "from tensorboardX import SummaryWriter"),
    ("training/loop.py", "if True:\n    from ml_collections import ConfigDict"),
    ("models/transformer.py", "from jax._src import core"),
    ("models/official_var.py", "import torch.nn.functional"),
    ("data/tfds.py", "import tensorflow as tf"),
    ("data/pipeline.py", "import tensorflow_datasets as tfds"),
    ("data/sources.py", "from pyarrow import parquet"),
    ("runtime/writer.py", "from clu import metric_writers"),
    ("models/tokenizer.py", "import os.path"),
    ("models/tokenizer.py", "from pathlib import Path"),
    ("focus/psf.py", "def load(path):\n    return open(path)"),
])
def test_a_violation_is_found(file, source):
    assert violations(PurePosixPath(file), source)


@pytest.mark.parametrize(("file", "source"), [
    ("models/tokenizer.py", "from refocus_jax.focus import Pyramid\nfrom . import attention\nfrom ..focus import psf"),
    ("modes/train.py", "from refocus_jax import __version__, pretrained\nimport os\nimport ml_collections"),
    ("runtime/checkpoint.py", "import orbax.checkpoint as ocp"),
    ("data/tfds.py", "import tensorflow_datasets as tfds\nfrom clu import parameter_overview\nopen('file')"),
])
def test_what_the_rules_allow_is_no_violation(file, source):
    assert violations(PurePosixPath(file), source) == []
