"""Is a run healthy? Its curves beside those of reference runs of the same settings with other seeds.

A curve is cut into `POINTS` equal stretches of the stage's steps and each becomes the median of what was logged in it,
so that neither how often a run logs nor a single odd batch matters. The first stretch, all of it warm-up, is left out.
A reference keeps mean, lowest and highest of its runs per stretch. Of three runs those are a narrow range: a fourth
of the same kind lies outside of it half of the time. So both ends are moved by `TOLERANCE` times its width (the widest
of `NEIGHBOURS` stretches, and at least `FLOOR` of the mean). With independent normal numbers a fourth run is outside of
that in one of 2,700 points, and only two in a row or the last one count. What goes wrong for good leaves it by far.
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

# Settings that shape what is learned, and what within them does not. A setting that one of the two configs does not
# have did not exist when it was written, and counts as off.
_SETTINGS = ("image_size", "grid_sizes", "class_names", "data", "focus",
             *(f"tokenizer.{section}" for section in (
                 "pretrained", "perceptual_network", "model", "alias", "loss", "revival", "adversarial",
                 "discriminator", "optimizer", "discriminator_optimizer", "train.batch_size", "train.steps")),
             *(f"generator.{section}" for section in (
                 "init_from", "model", "teacher", "optimizer", "train.batch_size", "train.steps", "train.label_dropout",
                 "train.ema_decay")))
_OTHERS = ("data.num_workers", "data.num_classes", *HOW_NOT_WHAT)
_SHIPPED = Path(__file__).parent / "references"


def locate(reference: str) -> Path:
    """The file of `report.reference`: a path, or the name of one that is shipped."""
    return Path(reference) if os.path.sep in reference or Path(reference).is_file() else _SHIPPED / f"{reference}.json"


class Judged(NamedTuple):
    """Curves that decide: `name` itself and `name/...`.

    better: 1 if higher is better, -1 if lower is, 0 if the run shall be like the reference. means: in plain words.
    causes: what to look at if it is not well.
    """

    stage: str
    name: str
    better: int
    means: str
    causes: str


_AUTOENCODER = ("whether stage 1 sees the images it should (pictures/reconstructions.png), tokenizer.optimizer."
                "learning_rate, and whether codes are in use (structure_perplexity)")
_CODES = ("revival of dead codes (tokenizer.revival.every, dead_codes/*), tokenizer.loss.commitment, and latent_rms: "
          "latents that grow or shrink leave their codes behind")
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
    Judged("tokenizer", "validation/structure_perplexity", 1, "codes in use, by how often", _CODES),
    Judged("tokenizer", "validation/alias_perplexity", 1, "alias codes in use, by how often", _CODES),
    Judged("generator", "loss/cross_entropy", -1, "the student's surprise at the right tokens", _STUDENT),
    Judged("generator", "accuracy", 1, "how often the student's first guess is right", _STUDENT),
    Judged("generator", "cross_entropy", -1, "the student's surprise at one scale's tokens", _STUDENT),
    Judged("generator", "loss/teacher_cross_entropy", -1, "the teacher's surprise at the right tokens",
           "the alias tokens (alias_perplexity) and generator.teacher.*"),
    Judged("generator", "gradient_norm/student", 0, "size of the student's gradients",
           "generator.optimizer.learning_rate and clip"),
    Judged("generator", "validation/cross_entropy", -1, "the student's surprise at held-out tokens",
           f"{_STUDENT}; if training's cross-entropy is well, the student learns its images by heart"),
)


@dataclasses.dataclass(frozen=True)
class Band:
    """A curve of several runs: per stretch its middle step, and mean, lowest and highest of their medians."""

    steps: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]

    def allowed(self) -> tuple[np.ndarray, np.ndarray]:
        """The lowest and highest values of a healthy run per point; see the module's docstring."""
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
      settings: what shapes them. curves, final: by stage and name; final has mean, low and high of the last numbers.
      about: seeds, machine and packages, in words.
    """

    about: Mapping[str, Any]
    settings: Mapping[str, Any]
    curves: Mapping[str, Mapping[str, Band]]
    final: Mapping[str, Mapping[str, Mapping[str, float]]]


REFERENCE_FIELDS = tuple(field.name for field in dataclasses.fields(Reference))  # what its file must hold


@dataclasses.dataclass(frozen=True)
class Departure:
    """A curve that leaves what the reference allows at `step`, and is within it again at `back`, if ever."""

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
                f"{self.value:.4g}, where {self.low:.4g} to {self.high:.4g} is healthy. Look at {self.judged.causes}.")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a comparison has found. last_steps: up to which each stage was compared, and how many it shall have."""

    reference: Reference
    compared: int
    departures: Sequence[Departure]
    missing: Sequence[str]
    last_steps: Mapping[str, tuple[int, int]]

    @property
    def healthy(self) -> bool:
        return not self.departures and not self.missing

    def __str__(self):
        so_far = [f"{stage} up to step {last} of {steps}" for stage, (last, steps) in self.last_steps.items()]
        seeds = len(self.reference.about["seeds"])
        lines = [f"{'Healthy' if self.healthy else 'Not healthy'}: {', '.join(so_far)}; {self.compared} curves beside "
                 f"those of {seeds} runs with seeds {', '.join(map(str, self.reference.about['seeds']))}."]
        if not self.departures:
            lines.append(f"None of them leaves the range of these runs, widened by {TOLERANCE:g} times its width on "
                         "both sides.")
        lines += [f"- {departure}" for departure in self.departures]
        lines += [f"- {name} is missing: the reference has it, this run does not." for name in self.missing]
        lines += [f"{stage}: not begun yet." for stage in self.reference.curves if stage not in self.last_steps]
        return "\n".join(lines)


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config.json that shapes what is learned, flat."""
    flat = flatten_dict(config, sep=".")
    if not flat.get("tokenizer.loss.perceptual"):
        flat.pop("tokenizer.perceptual_network", None)  # the name of a network that nothing asks
    return {name: value for name, value in flat.items() if name not in _OTHERS
            and any(f"{name}.".startswith(f"{section}.") for section in _SETTINGS)}


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Settings that two runs do not share, as 'NAME is ... there and ... here'."""
    return [f"{name} is {one.get(name)!r} there and {other.get(name)!r} here" for name in sorted(one.keys() | other)
            if one.get(name) != other.get(name) and (one.get(name) or other.get(name))]


def medians(curve: Curve, steps: int) -> dict[int, tuple[float, float]]:
    """Per stretch (1 is the second of `POINTS`) the mean step and the median of a curve's values in it."""
    stretches = (curve.steps - 1) * POINTS // steps
    found = {}
    for stretch in range(1, POINTS):
        chosen = stretches == stretch
        if chosen.any():
            found[stretch] = float(curve.steps[chosen].mean()), float(np.median(curve.values[chosen]))
    return found


def make(runs: Sequence[RecordedRun], about: Mapping[str, Any]) -> Reference:
    """A reference from finished runs that differ in their seeds alone.

    Args:
      about: what is known of them besides; their seeds are added.

    Raises:
      ValueError: they are fewer than three, unfinished, of other settings, of the same seed, or not finite.
    """
    seeds = [run.config["seed"] for run in runs]
    if len(runs) < 3 or len(set(seeds)) < len(seeds):
        raise ValueError(f"the runs have seeds {seeds}; give at least three, each with another seed")
    shaping = settings(runs[0].config)
    for run in runs:
        if found := differing(shaping, settings(run.config)):
            raise ValueError(f"{run.path} differs from {runs[0].path}: {'; '.join(found)}; give runs that differ in "
                             "their seeds alone")
        for stage in (stage for stage in STAGES if stage in runs[0].stages or stage in run.stages):
            last, steps = run.stages[stage].last_step if stage in run.stages else 0, run.steps(stage)
            if last < steps:
                raise ValueError(f"{run.path}: {stage} has logged step {last} of {steps}; let it finish")
    curves, final = {}, {}
    for stage in runs[0].stages:
        steps, stages = runs[0].steps(stage), [run.stages[stage] for run in runs]
        names = [name for name in stages[0].curves
                 if not name.startswith(OF_THE_MACHINE) and all(name in one.curves for one in stages)]
        curves[stage] = {name: _band([medians(one.curves[name], steps) for one in stages], f"{stage}: {name}")
                         for name in names}
        last = [run.last_numbers(stage) for run in runs]
        final[stage] = {name: _range([one[name] for one in last]) for name in last[0]
                        if all(name in one for one in last)}
    return Reference({**about, "seeds": seeds}, shaping, curves, final)


def _range(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "low": min(values), "high": max(values)}


def _band(runs: Sequence[dict[int, tuple[float, float]]], name: str) -> Band:
    stretches = sorted(set.intersection(*(set(run) for run in runs)))
    steps = [float(np.mean([run[stretch][0] for run in runs])) for stretch in stretches]
    values = np.array([[run[stretch][1] for run in runs] for stretch in stretches]).reshape(len(stretches), len(runs))
    if not np.isfinite(values).all():
        raise ValueError(f"{name} is not finite in one of the runs; a reference is made of healthy ones")
    return Band(steps, *(reduce(values, axis=1).tolist() for reduce in (np.mean, np.min, np.max)))


def compare(reference: Reference, run: RecordedRun) -> Verdict:
    """Judges a run, also one that goes on, by the stretches that it has finished.

    Raises:
      ValueError: it is of other settings, or has logged nothing that can be compared yet.
    """
    if found := differing(reference.settings, settings(run.config)):
        raise ValueError(f"{run.path} is another experiment than the reference: {'; '.join(found)}; only runs of the "
                         "same settings can be compared")
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
        raise ValueError(f"{run.path} has nothing to compare yet: "
                         + (", ".join(f"{s} is at step {n} of {m}" for s, (n, m) in last_steps.items())
                            or "no stage has begun") + f"; a tenth of a stage is enough (1/{POINTS} is left out)")
    return Verdict(reference, compared, departures, missing, last_steps)


def _departure(judged: Judged, name: str, band: Band, chosen: Sequence[int], values: Sequence[float]
               ) -> list[Departure]:
    """The first stretch of two or more points outside, or of the last point; none or one of them."""
    low, high = (bound[chosen] for bound in band.allowed())
    steps, values = np.array(band.steps)[chosen], np.array(values)
    well_low = values >= low if judged.better >= 0 else np.isfinite(values)
    well_high = values <= high if judged.better <= 0 else np.isfinite(values)
    outside = ~(well_low & well_high)
    for i in range(len(values)):
        if outside[i] and outside[i:i + 2].all():
            within = np.flatnonzero(~outside[i:])
            back = float(steps[i + within[0]]) if len(within) else None
            return [Departure(judged, name, float(steps[i]), back, float(values[i]), float(low[i]), float(high[i]))]
    return []


def final_table(reference: Reference, run: RecordedRun) -> Table:
    """A run's last evaluations beside those of the reference; they are shown and not judged."""
    rows = [[f"{stage}, {name}", *(float(f"{value:.4g}") for value in (
                run.last_numbers(stage)[name], *(numbers[key] for key in ("mean", "low", "high"))))]
            for stage, found in reference.final.items() if stage in run.stages
            for name, numbers in found.items() if name in run.last_numbers(stage)]
    return Table("Last evaluations", ["", "this run", "reference: mean", "lowest", "highest"], rows)


def to_json(reference: Reference) -> dict[str, Any]:
    """Plain dicts and lists, numbers rounded to five digits."""
    return _rounded(dataclasses.asdict(reference))


def from_json(content: Mapping[str, Any]) -> Reference:
    """The inverse of `to_json`, but for the digits."""
    curves = {stage: {name: Band(**band) for name, band in bands.items()}
              for stage, bands in content["curves"].items()}
    return Reference(content["about"], content["settings"], curves, content["final"])


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
