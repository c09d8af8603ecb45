"""`--mode=report`: shows one workdir, or compares several, on one HTML page."""

from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from refocus_jax.reporting import health, runs
from refocus_jax.reporting.health import Verdict
from refocus_jax.reporting.runs import RecordedRun
from refocus_jax.runtime import bucket, extras
from refocus_jax.runtime.files import atomically, read_json


def run(c: ConfigDict, workdir: str) -> None:
    """Writes WORKDIR/report.html: this run, with those of `report.compare` next to it.

    Raises:
      FileNotFoundError: One of them is not a workdir.
      ValueError: A file in a workdir is damaged, or a run is named twice.
      OSError: The page cannot be written.
      ImportError: The extra `report` is not installed.
    """
    extras.require("--mode=report", "report", {"jinja2": "jinja2", "matplotlib": "matplotlib"})
    if jax.process_index():
        return
    from refocus_jax.reporting import contents  # only this mode needs these packages

    paths = [Path(workdir), *map(Path, c.report.compare)]
    found = _named([runs.read(path) for path in paths])
    verdicts = {name: _verdict(c.report.reference, run) for name, run in found.items()} if c.report.reference else {}
    path = Path(workdir) / "report.html"
    page = contents.html(found, verdicts)
    with atomically(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    for name, verdict in verdicts.items():
        print(f"{name}: {verdict}\n")
    print(f"{bucket.address(path)}, {path.stat().st_size / 2**20:.1f} MiB; it needs no other file and no network")


def _named(found: Sequence[RecordedRun]) -> dict[str, RecordedRun]:
    """Names runs by the last parts of their paths, or by the whole paths if the last parts are not distinct."""
    for names in ([run.name for run in found], [run.place for run in found]):
        if len(set(names)) == len(names):
            return dict(zip(names, found, strict=True))
    raise ValueError(f"report.compare names a workdir twice: {', '.join(names)}; give each once, and not --workdir "
                     "itself")


def _verdict(reference: str, run: RecordedRun) -> Verdict | str:
    content = read_json(health.locate(reference), health.REFERENCE_FIELDS)
    if content is None:
        return f"Not compared: report.reference is {reference}, which does not exist."
    try:
        return health.compare(health.from_json(content), run)
    except ValueError as error:
        return f"Not compared: {error}"
