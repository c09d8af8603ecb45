"""Contents of the HTML page about one or several runs."""

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

from flax.traverse_util import flatten_dict

from refocus_jax.evaluation import tables
from refocus_jax.evaluation.tables import Table
from refocus_jax.reporting import curves, evaluations, meanings, page
from refocus_jax.reporting.health import Reference, Verdict
from refocus_jax.reporting.page import Drawing, Group, Item, Missing, Section, Settings, Tabled, Words
from refocus_jax.reporting.runs import STAGES, RecordedRun
from refocus_jax.runtime.files import read_json

# Runs by their names in a report.
Runs = Mapping[str, RecordedRun]


def html(runs: Runs, verdicts: Mapping[str, Verdict | str]) -> str:
    """Writes the report of runs, finished or not; it names what is missing and the command that makes it.

    Args:
      runs: The runs by their names.
      verdicts: The results of comparing runs with a reference, or why they could not be compared.
    """
    reference = next((verdict.reference for verdict in verdicts.values() if isinstance(verdict, Verdict)), None)
    grey = f" Grey: mean and range of the reference's runs ({reference.about['machine']})." if reference else ""
    return page.render(f"ReFocus-VAR: {', '.join(runs)}", [
        Section("summary", "In short", [*_health(verdicts), *_learned(runs)]),
        Section("pictures", "Pictures", list(_pictures(runs)), "Made at the last evaluation of each stage. A click "
                "shows a picture at its full size, another click returns.", True),
        Section("numbers", "The numbers that matter", list(_important(runs))),
        Section("curves", "Curves", list(_curves(runs, reference)), "Over the steps of training. Long curves are drawn "
                f"as the means of sections, with shading from the lowest to the highest value.{grey}"),
        Section("metrics", "Metrics", list(_metrics(runs))),
        Section("aliasing", "Aliasing and spectra", list(_aliasing(runs))),
        Section("cost", "Time and memory", list(_cost(runs))),
        Section("configuration", "Configuration", [*_about(runs), *_configuration(runs)])],
        [line for name, run in runs.items() for line in _made_on(run, name if len(runs) > 1 else "")])


def _of(runs: Runs, name: str) -> str:
    """Returns what is added to a title if there are several runs."""
    return f" of {name}" if len(runs) > 1 else ""


def _made_on(run: RecordedRun, name: str) -> Iterator[str]:
    """Yields a line that says when, with which version and on which machine a run was trained last."""
    logged = [stage.curves["time"].values[-1] for stage in run.stages.values() if stage.curves]
    made_on = [stage.made_on for stage in run.stages.values() if stage.made_on]
    if logged:
        by = f" by refocus_jax {made_on[-1]['refocus_jax']} on {made_on[-1]['machine']}" if made_on else ""
        yield f"{f'{name}: t' if name else 'T'}rained until {_date(max(logged))}{by}."


def _learned(runs: Runs) -> Iterator[Group]:
    """Says in words how far each run is and what it has learned."""
    for i, (name, run) in enumerate(runs.items()):
        lines = []
        for number, stage in enumerate(STAGES, 1):
            if stage in run.stages:
                says = f"step {run.stages[stage].last_step} of {run.steps(stage)}"
            else:
                from_elsewhere = stage == "tokenizer" and run.config["tokenizer"]["pretrained"]
                says = f"from {from_elsewhere}" if from_elsewhere else "not begun"
            lines.append(f"Stage {number}, {stage}: {says}.")
        numbers = (run.stages[stage].evaluation if stage in run.stages else {} for stage in STAGES)
        yield Group(f"learned-{i}", f"What {name} has learned", [Words("", [*lines, *evaluations.in_words(*numbers)])])


def _about(runs: Runs) -> Iterator[Group]:
    """Describes the images and networks of each run."""
    for i, (name, run) in enumerate(runs.items()):
        c, lines = run.config, []
        model = c["tokenizer"]["model"]
        pyramid = "VAR's pyramid" if model["pyramid"] == "var" else f"focus pyramid ({c['focus']['psf']} blur)"
        quantizer = "residual" if model["residual"] else "independent"
        teacher = c["generator"]["teacher"]["enabled"]
        taught = "distilled from a teacher that sees alias tokens" if teacher else "without a teacher"
        lines += [
            f"Images: {c['image_size']} × {c['image_size']} pixels of {c['data']['source']}, {len(c['class_names'])} "
            "classes.",
            f"Tokenizer: {pyramid}, {quantizer} scales of {', '.join(map(str, c['grid_sizes']))} tokens per side, "
            f"{model['vocab_size']} codes.",
            f"Student: {c['generator']['model']['depth']} blocks of width {c['generator']['model']['width']}, "
            f"{taught}."]
        yield Group(f"about-{i}", name, [Words("", lines)])


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


_IMPORTANT = {
    "tokenizer/psnr": "Reconstruction (PSNR)", "tokenizer/psnr_gain": "Gain over a thumbnail",
    "tokenizer/structure_usage/all": "Codes in use", "generator/cross_entropy/all": "Cross-entropy of the student",
    "generator/bits_per_image": "Bits per image", "generator/below_unigram_cross_entropy": "Below token frequencies",
    "generator/teacher_minus_student/mean": "Teacher minus student", "generator/fid": "FID",
    "generator/fd_efflite0": "Fréchet distance, EfficientNet-Lite0",
    "generator/fd_efflite1": "Fréchet distance, EfficientNet-Lite1"}


def _important(runs: Runs) -> Iterator[Group]:
    """Shows the few numbers that matter, from the workdir's evaluation.json or the stages' last evaluations."""
    numbers = {}
    for name, run in runs.items():
        numbers[name] = {f"{stage}/{key.removeprefix('validation/')}": value
                         for stage in run.stages for key, value in run.last_numbers(stage).items()}
    shown = [name for name in _IMPORTANT if any(name in found for found in numbers.values())]
    rows = [[_IMPORTANT[name], *(meanings.with_unit(name.partition("/")[2], found[name]) if name in found else None
                                 for found in numbers.values())] for name in shown]
    rows.append(["Time", *(curves.duration(curves.wall_seconds(run)) for run in runs.values())])
    says = [*(meanings.of(name.partition("/")[2]) for name in shown), "Training time so far, without pauses."]
    yield Group("numbers-table", "", [Tabled(Table("On held-out images", ["", *runs], rows), says)])


def _health(verdicts: Mapping[str, Verdict | str]) -> Iterator[Group]:
    for i, (name, verdict) in enumerate(verdicts.items()):
        first, *lines = str(verdict).splitlines()
        title, said = (first, lines) if isinstance(verdict, Verdict) else ("", [first, *lines])
        yield Group(f"health-{i}", f"Is {name} healthy?", [Words(title, [line.removeprefix("- ") for line in said])])


@dataclasses.dataclass(frozen=True)
class _Shown:
    """A picture of a workdir.

    Attributes:
      id: The id of its group in the page.
      path: Its path in the workdir.
      title: Its title.
      alt: Its description for screen readers.
      note: A note below the title.
      mode: The `--mode` that makes it.
      crisp: Whether its pixels matter.
    """

    id: str
    path: str
    title: str
    alt: str
    note: str
    mode: str
    crisp: bool = False


_SHOWN = (
    _Shown("samples", "generator/pictures/samples.png", "Samples", "Drawn images, one row per class",
           "One row per class, always with the same seeds.", "generator"),
    _Shown("reconstructions", "tokenizer/pictures/reconstructions.png", "Reconstructions",
           "Held-out images, their thumbnails, and the images decoded from their tokens",
           "Held-out images; thumbnails with as many pixels as the last scale has tokens; images decoded from tokens.",
           "tokenizer"),
    _Shown("focus-pull", "generator/pictures/focus_pull.png", "Focus pull",
           "Drawn images after each scale, coarse to fine", "One drawn image per class, after each scale; columns: "
           "tokens per side. focus_pull.gif, in the same folder, shows them one after the other.", "generator"),
    _Shown("focus-pyramid", "tokenizer/pictures/focus_pyramid.png", "Focus pyramid",
           "Views of three images at every scale: focused, downsampled without blur, and twice their difference",
           "Three rows per image, coarse to fine: L, blurred and then downsampled, which is what the tokenizer sees; "
           "D, downsampled without blur, so that fine detail aliases to false patterns; and twice their difference A, "
           "the alias residual. p: tokens per side; r: radius of the blur in pixels.", "tokenizer", True),
    _Shown("drawn", "samples/samples.png", "Samples on demand", "Drawn images, one row per class",
           "Drawn by --mode=sample; samples/samples.grid.json says how.", "sample"),
)


def _pictures(runs: Runs) -> Iterator[Group]:
    for shown in _SHOWN:
        items: list[Item] = []
        for name, run in runs.items():
            if (run.path / shown.path).exists():
                items.append(page.picture(run.path / shown.path, shown.alt + _of(runs, name),
                                          name if len(runs) > 1 else "", shown.crisp))
            else:
                items.append(Missing(f"{shown.title}{_of(runs, name)}: not there yet.", run.command(shown.mode)))
        yield Group(shown.id, shown.title, items, shown.note)


def _grouped(drawings: Iterator[Drawing]) -> Iterator[Group]:
    """Groups charts with the same title next to each other."""
    groups: dict[str, list[Drawing]] = {}
    for drawing in drawings:
        groups.setdefault(drawing.chart.title, []).append(drawing)
    for title, found in groups.items():
        yield Group(f"chart-{found[0].name}", title, found, found[0].chart.note)


def _curves(runs: Runs, reference: Reference | None) -> Iterator[Group]:
    yield from _grouped(curves.drawings(runs, reference))
    for i, (name, run) in enumerate(runs.items()):
        items = [Missing(f"{stage}{_of(runs, name)}: not trained yet.", run.command(stage)) for stage in STAGES
                 if stage not in run.stages and not (stage == "tokenizer" and run.config["tokenizer"]["pretrained"])]
        if "generator" in run.stages and not curves.FRECHET & run.stages["generator"].curves.keys():
            items.append(Missing(f"Fréchet distance over the steps{_of(runs, name)}: stage 2 draws no samples for it; "
                                 "to change that, train with", "--config.evaluate.during_training=2000"))
        if items:
            yield Group(f"untrained-{i}", "", items)


def _metrics(runs: Runs) -> Iterator[Group]:
    for i, (name, run) in enumerate(runs.items()):
        for stage, found in run.stages.items():
            title = f"{stage.capitalize()}{_of(runs, name)}"
            if not found.evaluation:
                yield Group(f"{stage}-evaluation-{i}", title, [Missing("No evaluation yet: the first comes at step "
                            f"{run.config[stage]['train']['evaluate_every']} or at the end.")])
                continue
            yield Group(f"{stage}-evaluation-{i}", title, [_scale_table(
                f"Held-out images, step {found.evaluation['step']}", found.evaluation)])
    missing = [Missing(f"Evaluation{_of(runs, name)} (FID and others): not there yet.", run.command("evaluate"))
               for name, run in runs.items() if run.evaluation is None]
    there = {name: run.evaluation for name, run in runs.items() if run.evaluation is not None}
    items: list[Item] = []
    for part in STAGES:
        if len(there) == 1:
            items += [_scale_table(part.capitalize(), one[part]) for one in there.values() if one.get(part)]
            continue
        names = dict.fromkeys(key for evaluation in there.values() for key in evaluation.get(part, {}))
        rows = [[key, *(evaluation.get(part, {}).get(key) for evaluation in there.values())] for key in names]
        if rows:
            items.append(Tabled(Table(part.capitalize(), ["", *there], rows), list(map(meanings.of, names))))
    for name, evaluation in there.items():
        if notes := evaluation.get("notes"):
            items.append(Words(f"Notes{_of(runs, name)}", notes))
        rest = {key: value for key, value in evaluation.items() if key not in (*STAGES, "notes")}
        items.append(Settings(f"How it was measured{_of(runs, name)}", rest))
    yield Group("evaluation", "Evaluation", [*items, *missing])


def _scale_table(title: str, evaluation: Mapping[str, float]) -> Tabled:
    """Makes a table with a row per metric and a column per scale."""
    columns, rows = evaluations.by_scale(evaluation)
    cells = [[metric, *(row.get(column) for column in columns)] for metric, row in rows.items()]
    return Tabled(Table(title, ["", *(column.replace("_", " ") for column in columns)], cells),
                  list(map(meanings.of, rows)))


def _aliasing(runs: Runs) -> Iterator[Group]:
    for i, (name, run) in enumerate(runs.items()):
        found = read_json(run.path / "aliasing" / "aliasing.json", ("pictures", "charts", "tables", "settings"))
        if found is None:
            yield Group(f"aliasing-{i}", "", [Missing(f"Aliasing{_of(runs, name)}: not measured yet.",
                                                      run.command("aliasing"))])
            continue
        for j, one in enumerate(found["pictures"]):
            shown = page.picture(run.path / "aliasing" / one["file"], one["title"] + _of(runs, name), crisp=True)
            yield Group(f"aliasing-{i}-picture-{j}", one["title"] + _of(runs, name), [shown], one["note"])
        for j, chart in enumerate(map(tables.chart_from_json, found["charts"])):
            yield Group(f"aliasing-{i}-chart-{j}", chart.title + _of(runs, name),
                        [Drawing(f"aliasing-{i}-{j}", chart, "")], chart.note)
        folded: list[Item] = [Tabled(Table(**one), folded=True) for one in found["tables"]]
        yield Group(f"aliasing-{i}-tables", f"Aliasing in numbers{_of(runs, name)}",
                    [*folded, Settings("How it was measured", found["settings"])])


def _cost(runs: Runs) -> Iterator[Group]:
    if any(run.stages for run in runs.values()):
        yield Group("costs", "", [Tabled(curves.costs(runs))])
    yield from _grouped(curves.speeds(runs))


def _configuration(runs: Runs) -> Iterator[Group]:
    if len(runs) > 1:
        flat: list[dict[str, Any]] = [flatten_dict(run.config, sep=".") for run in runs.values()]
        names = [name for name in sorted({name for one in flat for name in one})
                 if any(one.get(name) != flat[0].get(name) for one in flat)]
        rows = [[name, *(page.cell(one.get(name)) for one in flat)] for name in names]
        items = [Tabled(Table("Settings that differ", ["", *runs], rows))] if rows else [Words("", ["None."])]
        yield Group("differences", "What differs", items)
    yield Group("settings", "All settings" if len(runs) > 1 else "",
                [Settings(f"{name}: config.json", run.config) for name, run in runs.items()])
