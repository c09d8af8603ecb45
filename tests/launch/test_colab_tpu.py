"""launch/colab_tpu.ipynb, executed from its first cell to its last on the CPU.

As papermill does, the test puts a cell after the one that is tagged "parameters", which chooses the workdir and has
worker processes prepare the data, for which a notebook has no flags. All other cells run as they are.
"""

import base64
import io
import json
from pathlib import Path

import jax
import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

pytestmark = pytest.mark.slow  # the whole of tiny:smoke, with all its compilation

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "launch" / "colab_tpu.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook with its outputs, by cell id, and the workdir that it has trained in."""
    workdir = tmp_path_factory.mktemp("colab")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    place = 1 + next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    notebook.cells.insert(place, nbformat.v4.new_code_cell(
        f"WORKDIR = {str(workdir)!r}\nconfig.data.num_workers = 2"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
        NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(ROOT)}}).execute()
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}, workdir


def printed(cell) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")


def shown(cell) -> list[Image.Image]:
    data = [output.data for output in cell.outputs if output.output_type in ("display_data", "execute_result")]
    return [Image.open(io.BytesIO(base64.b64decode(datum[kind]))) for datum in data
            for kind in ("image/png", "image/gif") if kind in datum]


def test_every_cell_was_run_in_order(executed):
    cells, _ = executed
    assert [cell.execution_count for cell in cells.values()] == list(range(1, len(cells) + 1))


def test_it_trains_both_stages(executed):
    cells, workdir = executed
    assert "tokenizer, step 40" in printed(cells["train"]) and "generator, step 60" in printed(cells["train"])
    assert (workdir / "generator" / "checkpoints" / "60").is_dir()


@pytest.mark.parametrize(("cell", "number"), [
    ("tokenizer-pictures", 2), ("generator-pictures", 2), ("curves", 1), ("small", 1), ("sample", 1)])
def test_pictures_are_shown(executed, cell, number):
    cells, _ = executed
    pictures = shown(cells[cell])
    assert len(pictures) == number
    for picture in pictures:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 10  # the pictures are not empty


def test_where_the_package_is_installed_nothing_is(executed):
    cells, _ = executed
    assert cells["install"].outputs == []


def test_it_is_kept_without_outputs():
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)
