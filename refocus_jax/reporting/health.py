"""Checks whether a run is healthy: compares its curves with those of reference runs that differ only in their seeds.

A curve is divided into `POINTS` sections with equally many of the stage's steps, and each section is replaced by the
median of its values. So neither the logging frequency nor a single odd batch matters. The first section, which is
warm-up, is left out. A reference keeps the mean, minimum and maximum of its runs for each section. The range of three
runs is narrow: a fourth run of the same kind is outside of it half of the time. So the range is widened on both sides
by `TOLERANCE` times its width (the largest width of `NEIGHBOURS` sections, and at least `FLOOR` of the mean). With
independent normal numbers, a fourth run is outside of the wider range in one of 2,700 points, and only two consecutive
points or the last one count. Runs with real problems are far outside of it.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from refocus_jax.config.stages import HOW_NOT_WHAT
from refocus_jax.evaluation.tables import Table
from refocus_jax.reporting.runs import OF_THE_MACHINE, STAGES, Curve, RecordedRun

POINTS = 20
TOLERANCE = 2.0
NEIGHBOURS = 5
FLOOR = 0.025

# Settings that determine what is learned (`_SETTINGS`), and exceptions among them (`_OTHERS`). A setting that is
# missing in one of two configs did not exist when that config was written, and counts as off.
_SETTINGS = ("image_size", "grid_sizes", "class_names", "data", "focus",
             *(f"tokenizer.{section}" for section in (
                 "pretrained", "perceptual_network", "model", "alias", "loss", "revival", "adversarial",
                 "discriminator", "optimizer", "discriminator_optimizer", "train.batch_size", "train.steps")),
             *(f"generator.{section}" for section in (
                 "init_from", "architecture", "model", "teacher", "optimizer", "train.batch_size", "train.steps",
                 "train.label_dropout", "train.ema_decay")))
_OTHERS = ("data.num_workers", "data.num_classes", "data.max_unreadable", *HOW_NOT_WHAT)
_SHIPPED = Path(__file__).parent / "references"


def locate(reference: str) -> Path:
    """Finds the file of `report.reference`, which is a path or the name of a shipped reference."""
    return Path(reference) if os.path.sep in reference or Path(reference).is_file() else _SHIPPED / f"{reference}.json"


class Judged(NamedTuple):
    """Curves that are judged.

    Attributes:
      stage: The stage that logs them.
      name: Their name: `name` itself and all of `name/...`.
      better: 1 if higher is better, -1 if lower is better, 0 if the run should be like the reference.
      means: What they are, in plain words.
      causes: What to check if they are not healthy.
    """

    stage: str
    name: str
    better: int
    means: str
    causes: str


_AUTOENCODER = ("whether stage 1 sees the right images (pictures/reconstructions.png), tokenizer.optimizer."
                "learning_rate, and whether codes are in use (structure_perplexity)")
_CODES = ("revival of dead codes (tokenizer.revival.every, dead_codes/*), tokenizer.loss.commitment, and latent_rms: "
          "if latents grow or shrink, codes cannot follow them")
_STUDENT = ("whether the tokenizer is healthy first, then generator.optimizer.learning_rate, and whether tokens and "
            "labels belong together (data.tokens, tokenizer.pretrained)")
JUDGED = (
    Judged("tokenizer", "loss/reconstruction", -1, "error of the decoded image", _AUTOENCODER),
    Judged("tokenizer", "loss/view", -1, "error of the decoded coarser views", _AUTOENCODER),
    Judged("tokenizer", "loss/alias_reconstruction", -1, "error of the decoded alias residual",
           "the blur (focus.*), the alias tokenizer (tokenizer.alias.*) and its codes (alias_perplexity)"),
    Judged("tokenizer", "loss/vq", 0, "distance between latents and codes", _CODES),
    Judged("tokenizer", "latent_rms", 0, "size of the latents", _CODES),
    Judged("tokenizer", "gradient_norm", 0, "size of stage 1's gradients",
           "tokenizer.optimizer.learning_rate and clip, and the losses' weights"),
    Judged("tokenizer", "validation/psnr", 1, "held-out reconstruction in dB", _AUTOENCODER),
    Judged("tokenizer", "validation/view_psnr", 1, "held-out reconstruction of a coarser view in dB", _AUTOENCODER),
    Judged("tokenizer", "validation/structure_perplexity", 1, "effective number of codes in use", _CODES),
    Judged("tokenizer", "validation/alias_perplexity", 1, "effective number of alias codes in use", _CODES),
    Judged("generator", "loss/cross_entropy", -1, "the student's cross-entropy", _STUDENT),
    Judged("generator", "accuracy", 1, "how often the student's first guess is right", _STUDENT),
    Judged("generator", "cross_entropy", -1, "the student's cross-entropy at one scale", _STUDENT),
    Judged("generator", "loss/teacher_cross_entropy", -1, "the teacher's cross-entropy",
           "the alias tokens (alias_perplexity) and generator.teacher.*"),
    Judged("generator", "gradient_norm/student", 0, "size of the student's gradients",
           "generator.optimizer.learning_rate and clip"),
    Judged("generator", "validation/cross_entropy", -1, "the student's cross-entropy on held-out images",
           f"{_STUDENT}; if the cross-entropy of training is healthy, the student overfits its training images"),
)


@dataclasses.dataclass(frozen=True)
class Band:
    """A curve of several runs, by sections.

    Attributes:
      steps: The middle step of each section.
      mean: The mean of the runs' medians.
      low: The lowest of the runs' medians.
      high: The highest of the runs' medians.
    """

    steps: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]

    def allowed(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the lowest and highest values of a healthy run in each section; see the module's docstring."""
        low, high = np.array(self.low), np.array(self.high)
        width, count = high - low, len(low)
        size = min(NEIGHBOURS, count)
        starts = np.clip(np.arange(count) - size // 2, 0, count - size)
        widest = np.array([width[start:start + size].max() for start in starts])
        slack = TOLERANCE * np.maximum(widest, FLOOR * np.abs(self.mean))
        return low - slack, high + slack


@dataclasses.dataclass(frozen=True)
class Reference:
    """Several runs of one experiment; see `make`.

    Attributes:
      about: Seeds, machine and packages, in words.
      settings: The settings that determine what is learned.
      curves: The curves, by stage and name.
      final: The mean, low and high of the numbers of the last evaluations, by stage and name.
    """

    about: Mapping[str, Any]
    settings: Mapping[str, Any]
    curves: Mapping[str, Mapping[str, Band]]
    final: Mapping[str, Mapping[str, Mapping[str, float]]]


REFERENCE_FIELDS = tuple(field.name for field in dataclasses.fields(Reference))  # what a reference's file must hold


@dataclasses.dataclass(frozen=True)
class Departure:
    """A curve that leaves the range that the reference allows.

    Attributes:
      judged: What is known about such curves.
      name: The name of the curve.
      step: The step at which it leaves the range.
      back: The step at which it is in the range again; None if it does not return.
      value: Its value at `step`.
      low: The lowest healthy value at `step`.
      high: The highest healthy value at `step`.
    """

    judged: Judged
    name: str
    step: float
    back: float | None
    value: float
    low: float
    high: float

    def __str__(self):
        side = "not a number" if math.isnan(self.value) else "above" if self.value > self.high else "below"
        until = f" to {self.back:g}" if self.back else " on"
        return (f"{self.judged.stage}, {self.name} ({self.judged.means}): {side}, from step {self.step:g}{until}: "
                f"{self.value:.4g}, where {self.low:.4g} to {self.high:.4g} is healthy. Check {self.judged.causes}.")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The result of a comparison.

    Attributes:
      reference: The reference.
      compared: The number of curves that were compared.
      departures: The curves that leave the reference's range.
      missing: The curves that the reference has and the run has not.
      last_steps: The last step of each stage that was compared, and the number of steps it is to train.
    """

    reference: Reference
    compared: int
    departures: Sequence[Departure]
    missing: Sequence[str]
    last_steps: Mapping[str, tuple[int, int]]

    @property
    def healthy(self) -> bool:
        """Whether no curve is outside of the reference's range or missing."""
        return not self.departures and not self.missing

    def __str__(self):
        so_far = [f"{stage} up to step {last} of {steps}" for stage, (last, steps) in self.last_steps.items()]
        seeds = len(self.reference.about["seeds"])
        lines = [f"{'Healthy' if self.healthy else 'Not healthy'}: {', '.join(so_far)}; {self.compared} curves "
                 f"compared with those of {seeds} runs with seeds "
                 f"{', '.join(map(str, self.reference.about['seeds']))}."]
        if not self.departures:
            lines.append(f"None of them leaves the range of these runs, widened by {TOLERANCE:g} times its width on "
                         "both sides.")
        lines += [f"- {departure}" for departure in self.departures]
        lines += [f"- {name} is missing: the reference has it, this run does not." for name in self.missing]
        lines += [f"{stage}: not begun yet." for stage in self.reference.curves if stage not in self.last_steps]
        return "\n".join(lines)


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a config.json that determine what is learned, by their full names."""
    flat = flatten_dict(config, sep=".")
    if not flat.get("tokenizer.loss.perceptual"):
        flat.pop("tokenizer.perceptual_network", None)  # the name of a network that is not used
    return {name: value for name, value in flat.items() if name not in _OTHERS
            and any(f"{name}.".startswith(f"{section}.") for section in _SETTINGS)}


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Lists settings that differ between two runs, as 'NAME is ... there and ... here'."""
    return [f"{name} is {one.get(name)!r} there and {other.get(name)!r} here" for name in sorted(one.keys() | other)
            if one.get(name) != other.get(name) and (one.get(name) or other.get(name))]


def medians(curve: Curve, steps: int) -> dict[int, tuple[float, float]]:
    """Computes for each section (1 is the second of `POINTS`) the mean step and the median of a curve's values."""
    stretches = (curve.steps - 1) * POINTS // steps
    found = {}
    for stretch in range(1, POINTS):
        chosen = stretches == stretch
        if chosen.any():
            found[stretch] = float(curve.steps[chosen].mean()), float(np.median(curve.values[chosen]))
    return found


def make(runs: Sequence[RecordedRun], about: Mapping[str, Any]) -> Reference:
    """Makes a reference from finished runs that differ only in their seeds.

    Args:
      runs: The runs.
      about: What else is known about them; their seeds are added.

    Raises:
      ValueError: There are fewer than three, one is unfinished, settings differ, seeds are equal, or values are NaN or
        infinite.
    """
    seeds = [run.config["seed"] for run in runs]
    if len(runs) < 3 or len(set(seeds)) < len(seeds):
        raise ValueError(f"the runs have seeds {seeds}; give at least three, each with another seed")
    shaping = settings(runs[0].config)
    for run in runs:
        if found := differing(shaping, settings(run.config)):
            raise ValueError(f"{run.place} differs from {runs[0].place}: {'; '.join(found)}; give runs that differ "
                             "only in their seeds")
        for stage in (stage for stage in STAGES if stage in runs[0].stages or stage in run.stages):
            last, steps = run.stages[stage].last_step if stage in run.stages else 0, run.steps(stage)
            if last < steps:
                raise ValueError(f"{run.place}: {stage} has logged step {last} of {steps}; let it finish")
    curves, final = {}, {}
    for stage in runs[0].stages:
        steps, stages = runs[0].steps(stage), [run.stages[stage] for run in runs]
        names = [name for name in stages[0].curves
                 if not name.startswith(OF_THE_MACHINE) and all(name in one.curves for one in stages)]
        curves[stage] = {name: _band([medians(one.curves[name], steps) for one in stages], f"{stage}: {name}")
                         for name in names}
        numbers = [run.last_numbers(stage) for run in runs]
        final[stage] = {name: _range([one[name] for one in numbers]) for name in numbers[0]
                        if all(name in one for one in numbers)}
    return Reference({**about, "seeds": seeds}, shaping, curves, final)


def _range(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "low": min(values), "high": max(values)}


def _band(runs: Sequence[dict[int, tuple[float, float]]], name: str) -> Band:
    stretches = sorted(set.intersection(*(set(run) for run in runs)))
    steps = [float(np.mean([run[stretch][0] for run in runs])) for stretch in stretches]
    values = np.array([[run[stretch][1] for run in runs] for stretch in stretches]).reshape(len(stretches), len(runs))
    if not np.isfinite(values).all():
        raise ValueError(f"{name} is not finite in one of the runs; give only healthy runs")
    return Band(steps, *(reduce(values, axis=1).tolist() for reduce in (np.mean, np.min, np.max)))


def compare(reference: Reference, run: RecordedRun) -> Verdict:
    """Judges a run by the sections that it has finished, also while it trains.

    Raises:
      ValueError: The run has other settings, or has logged nothing that can be compared yet.
    """
    if found := differing(reference.settings, settings(run.config)):
        raise ValueError(f"{run.place} is another experiment than the reference: {'; '.join(found)}; only runs with "
                         "the same settings can be compared")
    departures, missing, last_steps, compared = [], [], {}, 0
    for stage, bands in reference.curves.items():
        if stage not in run.stages:
            continue
        steps, recorded = run.steps(stage), run.stages[stage]
        last_steps[stage] = recorded.last_step, steps
        finished = POINTS if recorded.last_step >= steps else (recorded.last_step - 1) * POINTS // steps
        for name, band in bands.items():
            judged = next((one for one in JUDGED if one.stage == stage and f"{name}/".startswith(f"{one.name}/")), None)
            if judged is None:
                continue
            points = medians(recorded.curves[name], steps) if name in recorded.curves else {}
            stretches = [int((step - 1) * POINTS // steps) for step in band.steps]
            chosen = [i for i, stretch in enumerate(stretches) if stretch in points and stretch < finished]
            if chosen:
                compared += 1
                departures += _departure(judged, name, band, chosen, [points[stretches[i]][1] for i in chosen])
            elif any(stretch < finished for stretch in stretches):
                missing.append(f"{stage}, {name}")
    if not compared:
        raise ValueError(f"{run.place} has nothing to compare yet: "
                         + (", ".join(f"{s} is at step {n} of {m}" for s, (n, m) in last_steps.items())
                            or "no stage has begun") + f"; a tenth of a stage is enough (1/{POINTS} is left out)")
    return Verdict(reference, compared, departures, missing, last_steps)


def _departure(judged: Judged, name: str, band: Band, chosen: Sequence[int], values: Sequence[float]
               ) -> list[Departure]:
    """Finds the first two consecutive points outside of the range, or the last point; returns one departure or none."""
    low, high = (bound[chosen] for bound in band.allowed())
    steps, found = np.array(band.steps)[chosen], np.array(values)
    well_low = found >= low if judged.better >= 0 else np.isfinite(found)
    well_high = found <= high if judged.better <= 0 else np.isfinite(found)
    outside = ~(well_low & well_high)
    for i in range(len(found)):
        if outside[i] and outside[i:i + 2].all():
            within = np.flatnonzero(~outside[i:])
            back = float(steps[i + within[0]]) if len(within) else None
            return [Departure(judged, name, float(steps[i]), back, float(found[i]), float(low[i]), float(high[i]))]
    return []


def final_table(reference: Reference, run: RecordedRun) -> Table:
    """Makes a table of a run's last evaluations next to those of the reference; they are shown but not judged."""
    rows = [[f"{stage}, {name}", *(float(f"{value:.4g}") for value in (
                run.last_numbers(stage)[name], *(numbers[key] for key in ("mean", "low", "high"))))]
            for stage, found in reference.final.items() if stage in run.stages
            for name, numbers in found.items() if name in run.last_numbers(stage)]
    return Table("Last evaluations", ["", "this run", "reference: mean", "lowest", "highest"], rows)


def to_json(reference: Reference) -> dict[str, Any]:
    """Converts a reference to plain dictionaries and lists, with numbers rounded to five digits."""
    return _rounded(dataclasses.asdict(reference))


def from_json(content: Mapping[str, Any]) -> Reference:
    """Inverts `to_json`, except for the rounding."""
    curves = {stage: {name: Band(**band) for name, band in bands.items()}
              for stage, bands in content["curves"].items()}
    return Reference(content["about"], content["settings"], curves, content["final"])


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
