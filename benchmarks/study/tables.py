"""Tables of the results: means over seeds with intervals, and the registered comparisons, paired by seed."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.study.rows import MEASURES, REGISTERED, ROWS
from refocus_jax.evaluation import metrics
from refocus_jax.evaluation.tables import Table
from refocus_jax.reporting.page import cell
from refocus_jax.runtime.files import read_json

CLUSTERS = {"image": "images", "class": "classes"}  # what the bootstrap may draw, and their plural
LEVEL = 0.95

# The results of a study by row and seed.
Results = Mapping[str, Mapping[int, Mapping[str, Any]]]


def gather(directory: Path) -> Results:
    """Reads the results of a study, or of a folder of result files.

    Raises:
      FileNotFoundError: There are none.
    """
    folder = directory / "results" if (directory / "results").is_dir() else directory
    found: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in ROWS}
    for path in sorted(folder.glob("*-*.json")):
        content = read_json(path, ("row", "seed", "numbers"))
        assert content is not None  # it has just been listed
        found[content["row"]][content["seed"]] = content
    if not any(found.values()):
        raise FileNotFoundError(f"--directory {directory} holds no results; give the directory of `run`, after a row "
                                "has finished")
    return {name: by_seed for name, by_seed in found.items() if by_seed}


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean over n seeds with the ends of its interval of Student's t; NaN with one seed."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.4g}" + ("" if self.n < 2 else f" ± {(self.high - self.low) / 2:.2g}")


def mean(values: Sequence[float]) -> Mean:
    n, centre = len(values), float(np.mean(values))
    if n < 2:
        return Mean(centre, np.nan, np.nan, n)
    half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * np.std(values, ddof=1) / n**0.5
    return Mean(centre, centre - half, centre + half, n)


@dataclasses.dataclass(frozen=True)
class Difference:
    """A difference of two rows, paired by seed.

    Attributes:
      seeds: The mean difference over seeds.
      p: The p-value of a paired t test; NaN with one seed, or if all differences are equal.
      effect: The mean difference in standard deviations of the differences (Cohen's d_z); NaN where p is.
    """

    seeds: Mean
    p: float
    effect: float


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Difference | None:
    """Compares two rows by their values per seed, a minus b; None if they share no seed."""
    differences = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
    if not differences:
        return None
    found = mean(differences)
    spread = float(np.std(differences, ddof=1)) if found.n > 1 else 0.0
    if spread == 0:
        return Difference(found, np.nan, np.nan)
    return Difference(found, float(stats.ttest_1samp(differences, 0).pvalue), found.mean / spread)


def holm(p: Sequence[float]) -> list[float]:
    """Corrects p-values for their number (Holm 1979); those that are NaN stay so, and count."""
    values, corrected, largest = np.asarray(p, float), np.full(len(p), np.nan), 0.0
    for rank, i in enumerate(np.argsort(values)):  # NaN comes last
        if not np.isnan(values[i]):
            largest = max(largest, min(1.0, (len(p) - rank) * values[i]))
            corrected[i] = largest
    return corrected.tolist()


def over_clusters(values: Sequence[float], classes: Sequence[int], clusters: str) -> tuple[float, float, float]:
    """Returns the mean of a value per image, and the ends of its bootstrap interval over images or over classes."""
    per_image = np.asarray(values)
    if clusters == "class":
        per_image = np.array([per_image[np.asarray(classes) == label].mean() for label in np.unique(classes)])
    return metrics.bootstrap_interval(per_image)


def number(result: Mapping[str, Any], name: str) -> float | None:
    """Returns a number of a result; "distance" is that of its first guidance and its judge to held-out images."""
    if name == "distance":
        name = f"guidance_{result['guidance'][0]:g}/validation/{result['judge']}"
    return result["numbers"].get(name)


def by_seed(results: Mapping[int, Mapping[str, Any]], name: str) -> dict[int, float]:
    found = {seed: number(result, name) for seed, result in results.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def _of_samples(judge: str, guidances: Sequence[float]) -> dict[str, str]:
    """Returns the numbers of samples by their titles."""
    kernel, found = judge.replace("fid", "kid").replace("fd_", "kid_"), {}
    for guidance in guidances:
        held_out, train = (f"guidance_{guidance:g}/{reference}" for reference in ("validation", "train"))
        names = {"FD": f"{held_out}/{judge}", "FD to training crops": f"{train}/{judge}",
                 "FD to reconstructions": f"{held_out}/{judge}_to_reconstructions", "KID": f"{held_out}/{kernel}",
                 "precision": f"{held_out}/precision", "recall": f"{held_out}/recall"}
        found |= {f"{title}, cfg {guidance:g}": name for title, name in names.items()}
    return found


def _of_rows(title: str, columns: Mapping[str, str], results: Results, note: str) -> Table:
    rows = []
    for name, runs in results.items():
        values = [list(by_seed(runs, column).values()) for column in columns.values()]
        rows.append([name, str(len(runs)), *(str(mean(found)) if found else None for found in values)])
    return Table(title, ["row", "seeds", *columns], rows, note)


def _comparisons(results: Results, clusters: str, registered: bool) -> Table:
    """Makes the table of the comparisons that were registered, or of those that came later and are not tested."""
    pairs = [(name, other, MEASURES[row.block]) for name, row in ROWS.items() for other in row.against
             if (row.block in REGISTERED) == registered]
    found = [paired(by_seed(results.get(name, {}), measure), by_seed(results.get(other, {}), measure))
             for name, other, measure in pairs]
    corrected, rows = holm([np.nan if one is None else one.p for one in found]), []
    for (name, other, measure), one, p in zip(pairs, found, corrected, strict=True):
        cells: list[Any] = [ROWS[name].block, f"{name} − {other}", measure]
        if one is None:
            rows.append([*cells, *[None] * 7])
            continue
        seeds, numbers = one.seeds, [one.effect, one.p, p]
        images = _over_images(results[name], results[other], measure, clusters)
        rows.append([*cells, str(seeds.n), f"{seeds.mean:+.4g}", _interval(seeds.low, seeds.high),
                     images and _interval(*images[1:]), *(None if np.isnan(value) else value for value in numbers)])
    columns = ["block", "rows", "measure", "seeds", "difference", "95 % over seeds", f"95 % over {CLUSTERS[clusters]}",
               "effect", "p", "p, Holm"]
    if not registered:  # without p-values
        return Table("Comparisons that were added later", columns[:-2], [row[:-2] for row in rows],
                     "Descriptions, not tests. To be read like the registered ones.")
    return Table("Registered comparisons", columns, rows,
                 "Lower is better for every measure: a negative difference means that the first row is ahead. Paired "
                 "by seed; intervals and p-values over seeds are Student's t. The bootstrap draws what is held out, "
                 "and averages over seeds. The effect is the mean difference in standard deviations of the "
                 f"differences. Holm's correction is for all {len(pairs)} comparisons, measured or not.")


def _interval(low: float, high: float) -> str | None:
    return None if np.isnan(low) else f"{low:+.4g} … {high:+.4g}"


def _over_images(a: Mapping[int, Mapping[str, Any]], b: Mapping[int, Mapping[str, Any]], measure: str,
                 clusters: str) -> tuple[float, float, float] | None:
    """Bootstraps a difference of cross-entropies over held-out images; None for other measures."""
    kind, _, scale = measure.partition("/")
    if kind != "cross_entropy":
        return None
    seeds = sorted(a.keys() & b.keys())
    differences = np.mean([np.subtract(a[seed]["images"][kind][scale], b[seed]["images"][kind][scale])
                           for seed in seeds], axis=0)
    return over_clusters(differences, a[seeds[0]]["images"]["class"], clusters)


def _teachers(results: Results, clusters: str) -> Table:
    """Makes the table of teachers: their cross-entropy minus the student's over the taught scales."""
    rows = []
    for name, runs in results.items():
        evidences = next(iter(runs.values()))["images"]["teacher_minus_student"]
        for evidence in evidences:
            images = np.mean([run["images"]["teacher_minus_student"][evidence] for run in runs.values()], axis=0)
            _, low, high = over_clusters(images, next(iter(runs.values()))["images"]["class"], clusters)
            seeds = mean(list(by_seed(runs, f"teacher_minus_student/{evidence}").values()))
            rows.append([name, evidence, str(seeds.n), f"{seeds.mean:+.4g}", _interval(seeds.low, seeds.high),
                         _interval(low, high)])
    return Table("Teacher minus student", ["row", "alias tokens", "seeds", "nats per token", "95 % over seeds",
                                           f"95 % over {CLUSTERS[clusters]}"], rows,
                 "Below zero, the teacher is ahead. It reads the image's own alias tokens, those of another image of "
                 "the class, or none.")


def tables(directory: Path, clusters: str) -> list[Table]:
    """Makes all tables of a study."""
    results = gather(directory)
    first = next(iter(next(iter(results.values())).values()))
    scales = [name for name in first["images"]["cross_entropy"] if name.startswith("scale_")]
    entropies = {name: f"cross_entropy/{name}" for name in scales} | {
        "all": "cross_entropy/all", "bits per image": "bits_per_image",
        "below unigram": "below_unigram_cross_entropy"}
    judge = first["judge"]
    reconstruction = {"PSNR": "tokenizer/psnr", "SSIM": "tokenizer/ssim",
                      f"reconstruction {judge}": f"tokenizer/reconstruction_{judge}",
                      "codes, perplexity": "tokenizer/structure_perplexity/all"}
    over = "Means over seeds with the half width of their 95 % interval."
    return [_comparisons(results, clusters, registered=True),
            _comparisons(results, clusters, registered=False),
            _of_rows("Cross-entropies", entropies, results, over + " In nats per held-out token. Only rows behind one "
                     "tokenizer can be compared: all scales among teachers, the last scale among blurs."),
            _teachers(results, clusters),
            _of_rows("Samples", _of_samples(judge, first["guidance"]), results, over + f" Distances of {judge}, to "
                     "held-out crops unless said otherwise."),
            _of_rows("Reconstructions", reconstruction, results, over + " Of held-out crops, with the views of the "
                     "row."),
            _cost(results)]


def _cost(results: Results) -> Table:
    rows = []
    for name, runs in results.items():
        seconds = [[run["processor_seconds"][stage] for run in runs.values()] for stage in ("tokenizer", "generator")]
        rows.append([name, *(None if None in found else str(mean(found)) for found in seconds)])
    return Table("Processor seconds", ["row", "tokenizer", "stage 2"], rows, "Of all cores, with the evaluations of "
                 "training. Several rows share a tokenizer.")


def markdown(table: Table) -> str:
    def line(cells: Iterable[Any]) -> str:
        return f"| {' | '.join(cells)} |"

    return "\n".join([f"## {table.title}", "", table.note, "", line(table.columns),
                      line("---" for _ in table.columns), *(line(map(cell, row)) for row in table.rows)])
