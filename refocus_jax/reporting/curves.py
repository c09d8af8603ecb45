"""Charts of what training has logged, with several runs in the same charts, and a table of time and memory."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import numpy as np

from refocus_jax.evaluation.tables import Chart, Line, Table
from refocus_jax.reporting.health import Reference
from refocus_jax.reporting.page import Drawing
from refocus_jax.reporting.runs import STAGES, RecordedRun, Stage

_REFERENCE_COLOR = 7  # grey


@dataclasses.dataclass(frozen=True)
class _Number:
    """One chart with a line per run; the number named `beside` is drawn dashed in the same colour."""

    stage: str
    name: str
    title: str
    unit: str
    beside: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class _PerScale:
    """One chart per run with a line per scale; `logged` says whether training logs it too, not only evaluations."""

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
    _Number("tokenizer", "loss/total", "Loss of stage 1", "loss", note="The sum of all terms on training batches. It "
            "rises where the adversarial loss begins."),
    _Parts("tokenizer", {"loss/reconstruction": "image", "loss/view": "coarser views",
                         "loss/alias_reconstruction": "alias residual", "loss/vq": "codes",
                         "loss/perceptual": "features"},
           "Parts of stage 1's loss", "loss", "Errors of the decoded image, of its coarser views and of the alias "
           "residual, distance between latents and codes, and the perceptual distance if there is such a loss."),
    _Number("tokenizer", "validation/psnr", "Held-out reconstruction", "PSNR in dB", "validation/thumbnail_psnr",
            "Higher is better. Dashed: a thumbnail with as many pixels as the last scale has tokens."),
    _PerScale("tokenizer", "validation/view_psnr", "Held-out reconstruction of the coarser views", "PSNR in dB"),
    _PerScale("tokenizer", "validation/structure_usage", "Codes in use", "share of the codebook",
              note="The fraction of codes that occur in the held-out images. Coarse scales have few tokens and cannot "
              "use many codes."),
    _PerScale("tokenizer", "validation/structure_perplexity", "Code perplexity", "codes",
              note="The effective number of codes in use; rare codes count little. Collapse shows here first."),
    _PerScale("tokenizer", "validation/alias_usage", "Alias codes in use", "share of the codebook"),
    _PerScale("tokenizer", "validation/alias_perplexity", "Alias code perplexity", "codes"),
    _Number("tokenizer", "dead_codes/structure", "Dead codes", "codes", "dead_codes/alias",
            "Codes not used since the last revival and replaced by this one. Dashed: those of the alias tokenizer."),
    _Number("tokenizer", "gradient_norm", "Gradients of stage 1", "norm"),
    _Number("generator", "loss/cross_entropy", "Cross-entropy of the student", "nats per token",
            "validation/cross_entropy/all", "Lower is better. Dashed: held-out images. Where the two diverge, the "
            "student overfits its training images."),
    _PerScale("generator", "cross_entropy", "Cross-entropy per scale", "nats per token", True,
              "Dashed, if present: held-out images."),
    _PerScale("generator", "accuracy", "Accuracy per scale", "share of tokens", True,
              "How often the most likely token is the right one. Dashed: held-out images."),
    _Number("generator", "validation/fid", "FID while training", "FID", note="Fréchet distance between drawn and "
            "held-out images, with Inception's features; lower is better."),
    _Number("generator", "validation/fd_efflite0", "Fréchet distance while training", "FD, EfficientNet-Lite0",
            note="Like FID, but with another network's features: it cannot be compared with published FIDs. Lower is "
            "better."),
    _Number("generator", "validation/fd_efflite1", "Fréchet distance while training, second judge",
            "FD, EfficientNet-Lite1", note="With a network that is in no loss. Lower is better."),
    _Number("generator", "validation/teacher_minus_student/mean", "Teacher minus student", "nats per token",
            note="Below zero, the teacher, which sees alias tokens, is ahead. The shading is a 95 % interval."),
    _Parts("generator", {"loss/logit": "logits", "loss/feature": "features"}, "Distillation", "loss",
           "The differences between student and teacher."),
    _Number("generator", "gradient_norm/student", "Gradients of the student", "norm"),
)
FRECHET = frozenset(one.name for one in _CHARTS if isinstance(one, _Number) and one.unit.startswith("F"))
_SPEED = "images_per_second"
_SPEEDS = tuple(_Number(stage, _SPEED, f"Speed of the {stage}'s training", "images per second") for stage in STAGES)


def drawings(runs: Mapping[str, RecordedRun], reference: Reference | None = None) -> Iterator[Drawing]:
    """Makes all charts of losses and evaluations for which there are numbers. Their names begin with the stage.

    Args:
      runs: The runs by their names in the charts.
      reference: Reference runs, drawn as a grey band.
    """
    return _drawings(_CHARTS, runs, reference)


def speeds(runs: Mapping[str, RecordedRun]) -> Iterator[Drawing]:
    """Makes the charts of training speed."""
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
    curve = stage.curves[name]
    return [Line(label, _floats(curve.steps), _floats(curve.values), dashed=dashed, color=color)]


def _floats(array: np.ndarray) -> Sequence[float]:
    return cast(Sequence[float], array)  # a chart uses it only as a sequence


def _numbers(one: _Number, stages: Mapping[str, Stage], named: bool) -> list[Line]:
    found = []
    for i, (run, stage) in enumerate(stages.items()):
        lines = _line(stage, one.name, run if named else "", i)
        low, high = (stage.curves.get(f"{one.name.removesuffix('mean')}{bound}") for bound in ("low", "high"))
        if lines and one.name.endswith("/mean") and low and high:
            lines = [dataclasses.replace(lines[0], low=_floats(low.values), high=_floats(high.values))]
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
    """Computes how long a run's training took, with evaluations and saves but without pauses between calls."""
    return sum(_seconds(stage, run.config[stage.name]["train"]["batch_size"]) for stage in run.stages.values())


def _seconds(stage: Stage, batch_size: int) -> float:
    if not stage.curves:
        return 0.0
    times, speed, restores = stage.curves["time"], stage.curves.get(_SPEED), stage.curves.get("seconds/restore")
    speeds = dict(zip(speed.steps.tolist(), speed.values.tolist(), strict=True)) if speed else {}
    begun = dict(zip(restores.steps.tolist(), restores.values.tolist(), strict=True)) if restores else {}
    total, last_step, last_time = 0.0, 0, None
    for step, time in zip(times.steps.tolist(), times.values.tolist(), strict=True):
        if step in begun and step in speeds:  # the first line of a call: the time before it was a pause
            total += begun.pop(step) + batch_size * (step - last_step) / speeds[step]
        elif last_time is not None:
            total += time - last_time
        last_step, last_time = step, time
    return total


def costs(runs: Mapping[str, RecordedRun]) -> Table:
    """Makes the table of time and memory of every stage of every run."""
    columns = ["run", "stage", "steps", "time", "images/s", "starts", "s to first step", "s to restore", "s per save",
               "s, longest save", "peak memory, process", "peak memory, device"]
    rows = [[name, stage.name, f"{stage.last_step} of {run.steps(stage.name)}",
             duration(_seconds(stage, run.config[stage.name]["train"]["batch_size"])), *_measured(stage)]
            for name, run in runs.items() for stage in run.stages.values()]
    return Table("Of every stage", columns, rows, "Time: of the steps in the curves, with evaluations and saves, "
                 "without pauses. Seconds and images/s are medians. The process's peak memory is counted from its "
                 "start: if one call trained both stages, stage 2's includes stage 1's. CPUs report no device memory.")


def _measured(stage: Stage) -> list[float | str | None]:
    def logged(name, reduce):
        return float(reduce(stage.curves[name].values)) if name in stage.curves else None

    peaks = [logged(f"peak_bytes/{kind}", np.max) for kind in ("process", "device")]
    return [logged(_SPEED, np.median), logged("seconds/start_up", len), logged("seconds/start_up", np.median),
            logged("seconds/restore", np.median), logged("seconds/save", np.median), logged("seconds/save", np.max),
            *(None if peak is None else f"{peak / 2**30:.2f} GiB" for peak in peaks)]


def duration(seconds: float) -> str:
    """Formats a duration in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
