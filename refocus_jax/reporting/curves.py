"""Charts of what training has logged, with several runs in the same ones, and a table of what it cost."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from refocus_jax.evaluation.tables import Chart, Line, Table
from refocus_jax.reporting.health import Reference
from refocus_jax.reporting.page import Drawing
from refocus_jax.reporting.runs import STAGES, RecordedRun, Stage

_REFERENCE_COLOR = 7  # grey


@dataclasses.dataclass(frozen=True)
class _Number:
    """One chart with a line per run. beside: drawn dashed in the same colour."""

    stage: str
    name: str
    title: str
    unit: str
    beside: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class _PerScale:
    """One chart per run with a line per scale. logged: whether the training logs it too, and not only evaluations."""

    stage: str
    name: str
    title: str
    unit: str
    logged: bool = False
    note: str = ""


@dataclasses.dataclass(frozen=True)
class _Parts:
    """One chart per run with a line per name."""

    stage: str
    names: Mapping[str, str]
    title: str
    unit: str
    note: str = ""


_CHARTS = (
    _Number("tokenizer", "loss/total", "Loss of stage 1", "loss", note="The sum of all its parts, of training batches. "
            "It rises where the adversary begins."),
    _Parts("tokenizer", {"loss/reconstruction": "image", "loss/view": "coarser views",
                         "loss/alias_reconstruction": "alias residual", "loss/vq": "codes",
                         "loss/perceptual": "features"},
           "Parts of stage 1's loss", "loss", "How far the decoded image, its coarser views and the alias residual are "
           "off, how far latents are from their codes, and features of the image, where a network is asked."),
    _Number("tokenizer", "validation/psnr", "Held-out reconstruction", "PSNR in dB", "validation/thumbnail_psnr",
            "Higher is better. Dashed: the plain thumbnail with as many pixels as the last scale has tokens."),
    _PerScale("tokenizer", "validation/view_psnr", "Held-out reconstruction of the coarser views", "PSNR in dB"),
    _PerScale("tokenizer", "validation/structure_usage", "Codes in use", "share of the codebook",
              note="The share of all codes that occur in the held-out images. Coarse scales have few tokens, and "
              "cannot use many."),
    _PerScale("tokenizer", "validation/structure_perplexity", "Code perplexity", "codes",
              note="How many codes are in use, those that are rare counting little. Collapse shows here first."),
    _PerScale("tokenizer", "validation/alias_usage", "Alias codes in use", "share of the codebook"),
    _PerScale("tokenizer", "validation/alias_perplexity", "Alias code perplexity", "codes"),
    _Number("tokenizer", "dead_codes/structure", "Dead codes", "codes", "dead_codes/alias",
            "Unused since the last revival, and replaced by this one. Dashed: those of the alias tokenizer."),
    _Number("tokenizer", "gradient_norm", "Gradients of stage 1", "norm"),
    _Number("generator", "loss/cross_entropy", "Cross-entropy of the student", "nats per token",
            "validation/cross_entropy/all", "Surprise at the right tokens; lower is better. Dashed: held-out images. "
            "Where they part, the student learns its images by heart."),
    _PerScale("generator", "cross_entropy", "Cross-entropy per scale", "nats per token", True,
              "Dashed, where there are dashes: held-out images."),
    _PerScale("generator", "accuracy", "Accuracy per scale", "share of tokens", True,
              "How often the likeliest token is the right one. Dashed: held-out images."),
    _Number("generator", "validation/fid", "FID while training", "FID", note="Fréchet distance between drawn and "
            "held-out images, with Inception's features; lower is better."),
    _Number("generator", "validation/fd_efflite0", "Fréchet distance while training", "FD, EfficientNet-Lite0",
            note="As FID, with another network's features: it cannot be compared with published FIDs. Lower is "
            "better."),
    _Number("generator", "validation/teacher_minus_student/mean", "Teacher minus student", "nats per token",
            note="Below zero the teacher, who sees alias tokens, is ahead. The shade is a 95 % interval."),
    _Parts("generator", {"loss/logit": "logits", "loss/feature": "features"}, "Distillation", "loss",
           "How far the student is from the teacher."),
    _Number("generator", "gradient_norm/student", "Gradients of the student", "norm"),
)
FRECHET = frozenset(one.name for one in _CHARTS if one.unit.startswith("F"))
_SPEED = "images_per_second"
_SPEEDS = tuple(_Number(stage, _SPEED, f"Speed of the {stage}'s training", "images per second") for stage in STAGES)


def drawings(runs: Mapping[str, RecordedRun], reference: Reference | None = None) -> Iterator[Drawing]:
    """What was learned: all charts for which there is anything to draw. Their names begin with the stage.

    Args:
      runs: by the names that the charts give them. reference: drawn as a grey band.
    """
    return _drawings(_CHARTS, runs, reference)


def speeds(runs: Mapping[str, RecordedRun]) -> Iterator[Drawing]:
    """How fast it was."""
    return _drawings(_SPEEDS, runs, None)


def _drawings(wanted: Sequence[_Number | _PerScale | _Parts], runs: Mapping[str, RecordedRun],
              reference: Reference | None) -> Iterator[Drawing]:
    several = len(runs) > 1
    for one in wanted:
        stages = {name: run.stages[one.stage] for name, run in runs.items() if one.stage in run.stages}
        name = "parts" if isinstance(one, _Parts) else one.name.removeprefix("validation/")
        name = f"{one.stage}-" + re.sub(r"[^a-z0-9]+", "-", name)
        if isinstance(one, _Number):
            band = reference and reference.curves.get(one.stage, {}).get(one.name)
            if lines := _numbers(one, stages, several or band is not None):
                if band:
                    lines.append(Line("reference", band.steps, band.mean, band.low, band.high, True, _REFERENCE_COLOR))
                yield Drawing(name, Chart(one.title, "step", one.unit, lines, note=one.note), "")
            continue
        for i, (run, stage) in enumerate(stages.items()):
            if lines := _parts(one, stage) if isinstance(one, _Parts) else _scales(one, stage):
                chart = Chart(one.title, "step", one.unit, lines, log_y=isinstance(one, _Parts), note=one.note)
                yield Drawing(f"{name}-{i}", chart, run) if several else Drawing(name, chart, "")
        if isinstance(one, _PerScale):
            last = {run: _last_of_scales(one, stage) for run, stage in stages.items()}
            lines = [Line(run, *points, color=i) for i, (run, points) in enumerate(last.items()) if points]
            if len(lines) > 1:
                yield Drawing(f"{name}-last", Chart(one.title, "scale, coarse to fine", one.unit, lines),
                              "All of them, at the last evaluation")


def _line(stage: Stage, name: str, label: str, color: int, dashed: bool = False) -> list[Line]:
    if name not in stage.curves:
        return []
    return [Line(label, stage.curves[name].steps, stage.curves[name].values, dashed=dashed, color=color)]


def _numbers(one: _Number, stages: Mapping[str, Stage], named: bool) -> list[Line]:
    found = []
    for i, (run, stage) in enumerate(stages.items()):
        lines = _line(stage, one.name, run if named else "", i)
        low, high = (stage.curves.get(f"{one.name.removesuffix('mean')}{bound}") for bound in ("low", "high"))
        if lines and one.name.endswith("/mean") and low and high:
            lines = [dataclasses.replace(lines[0], low=low.values, high=high.values)]
        found += lines + (_line(stage, one.beside, "", i, True) if lines else [])
    return found


def _parts(one: _Parts, stage: Stage) -> list[Line]:
    return [line for i, (name, label) in enumerate(one.names.items()) for line in _line(stage, name, label, i)]


def _scales_of(stage: Stage, name: str) -> list[int]:
    found = (re.fullmatch(rf"(?:validation/)?{re.escape(name)}/scale_(\d+)", curve) for curve in stage.curves)
    return sorted({int(match[1]) for match in found if match})


def _scales(one: _PerScale, stage: Stage) -> list[Line]:
    lines = []
    for i, scale in enumerate(_scales_of(stage, one.name)):
        lines += _line(stage, f"{one.name}/scale_{scale}", f"scale {scale}", i)
        if one.logged:
            lines += _line(stage, f"validation/{one.name}/scale_{scale}", "", i, True)
    return lines + ([] if one.logged or not lines else _line(stage, f"{one.name}/all", "all", len(lines)))


def _last_of_scales(one: _PerScale, stage: Stage) -> tuple[list[int], list[float]] | None:
    name = f"validation/{one.name}" if one.logged else one.name
    last = {scale: stage.curves[f"{name}/scale_{scale}"].values[-1] for scale in _scales_of(stage, one.name)
            if f"{name}/scale_{scale}" in stage.curves}
    return (list(last), list(last.values())) if last else None


def wall_seconds(run: RecordedRun) -> float:
    """How long the training behind a run's curves took, evaluations and saves included, pauses between calls not."""
    return sum(_seconds(stage, run.config[stage.name]["train"]["batch_size"]) for stage in run.stages.values())


def _seconds(stage: Stage, batch_size: int) -> float:
    if not stage.curves:
        return 0.0
    times, speed, restores = (stage.curves.get(name) for name in ("time", _SPEED, "seconds/restore"))
    speeds = dict(zip(speed.steps.tolist(), speed.values.tolist(), strict=True)) if speed else {}
    begun = dict(zip(restores.steps.tolist(), restores.values.tolist(), strict=True)) if restores else {}
    total, last_step, last_time = 0.0, 0, None
    for step, time in zip(times.steps.tolist(), times.values.tolist(), strict=True):
        if step in begun and step in speeds:  # the first line of a call: the time since the last one is a pause
            total += begun.pop(step) + batch_size * (step - last_step) / speeds[step]
        elif last_time is not None:
            total += time - last_time
        last_step, last_time = step, time
    return total


def costs(runs: Mapping[str, RecordedRun]) -> Table:
    """Time and memory of every stage of every run."""
    columns = ["run", "stage", "steps", "time", "images/s", "starts", "s to first step", "s to restore", "s per save",
               "s, longest save", "peak memory, process", "peak memory, device"]
    rows = [[name, stage.name, f"{stage.last_step} of {run.steps(stage.name)}",
             duration(_seconds(stage, run.config[stage.name]["train"]["batch_size"])), *_measured(stage)]
            for name, run in runs.items() for stage in run.stages.values()]
    return Table("Of every stage", columns, rows, "Time of the steps in the curves, with evaluations and saves, "
                 "without pauses. Seconds and images/s are medians. The process's peak is since it was started: stage "
                 "2 shares it with stage 1 where one call trained both. CPUs count no memory of the device.")


def _measured(stage: Stage) -> list[float | str | None]:
    def logged(name, reduce):
        return float(reduce(stage.curves[name].values)) if name in stage.curves else None

    peaks = [logged(f"peak_bytes/{kind}", np.max) for kind in ("process", "device")]
    return [logged(_SPEED, np.median), logged("seconds/start_up", len), logged("seconds/start_up", np.median),
            logged("seconds/restore", np.median), logged("seconds/save", np.median), logged("seconds/save", np.max),
            *(None if peak is None else f"{peak / 2**30:.2f} GiB" for peak in peaks)]


def duration(seconds: float) -> str:
    """As people say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
