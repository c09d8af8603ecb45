"""A page with the tables of a study, curves over the steps and sample grids side by side."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.study import tables
from benchmarks.study.rows import MEASURES, ROWS
from benchmarks.study.tables import Results
from refocus_jax.evaluation.tables import Chart, Line
from refocus_jax.reporting import page
from refocus_jax.reporting.page import Drawing, Group, Section, Tabled
from refocus_jax.runtime.files import atomically

# The curves by the name of the metric: title and unit. A run has those distances that it measured while it trained.
_CURVES = {"validation/fd_efflite0": ("Fréchet distance of samples", "FD, EfficientNet-Lite0"),
           "validation/fd_efflite1": ("Fréchet distance of samples", "FD, EfficientNet-Lite1"),
           "validation/fid": ("Fréchet distance of samples", "FID"),
           "validation/below_unigram_cross_entropy": ("Cross-entropy below the unigram model's", "share"),
           "validation/cross_entropy/all": ("Held-out cross-entropy", "nats per token")}


def write(directory: Path, clusters: str) -> Path:
    """Writes DIRECTORY/study.html and returns its path."""
    results = tables.gather(directory)
    found = tables.tables(directory, clusters)
    sections = [
        Section("tables", "Tables", [Group(f"table-{i}", table.title, [Tabled(table)]) for i, table in
                                     enumerate(found)]),
        Section("curves", "Convergence", list(_curves(results)), "Means over seeds; the shading is from the lowest to "
                "the highest."),
        Section("samples", "Samples", list(_samples(directory, results)), "Of the first seed, at the last evaluation "
                "of training: one row per class, and the same random numbers for all.")]
    path = directory / "study.html"
    with atomically(path) as temporary:
        temporary.write_text(page.render("The study", [section for section in sections if section.groups]),
                             encoding="utf-8")
    return path


def _curves(results: Results) -> Iterator[Group]:
    for block in MEASURES:
        # The rows of the block, and those that they are compared with.
        own = {name for name in ROWS if ROWS[name].block == block}
        shown = [name for name in results if name in own | {other for row in own for other in ROWS[row].against}]
        drawings = []
        for metric, (title, unit) in _CURVES.items():
            lines = [line for i, name in enumerate(shown) for line in _line(name, results, metric, i)]
            if lines:
                drawings.append(Drawing(f"block-{list(MEASURES).index(block)}-{metric.replace('/', '-')}",
                                        Chart(title, "step of stage 2", unit, lines), ""))
        if drawings:
            yield Group(f"curves-{list(MEASURES).index(block)}", f"Block {block}", drawings)


def _line(name: str, results: Results, metric: str, color: int) -> list[Line]:
    curves = [run["curves"][metric] for run in results[name].values() if metric in run["curves"]]
    if not curves or any(curve["steps"] != curves[0]["steps"] for curve in curves):
        return []
    values = np.array([curve["values"] for curve in curves])
    return [Line(name, curves[0]["steps"], values.mean(0).tolist(), values.min(0).tolist(), values.max(0).tolist(),
                 color=color)]


def _samples(directory: Path, results: Results) -> Iterator[Group]:
    for name, runs in results.items():
        path = directory / name / str(min(runs)) / "generator" / "pictures" / "samples.png"
        if path.exists():
            yield Group(f"samples-{name}", name, [page.picture(path, f"samples of {name}", ROWS[name].question)])
