"""Evaluation of both stages on held-out images, during training and at its end: numbers and pictures."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics

from refocus_jax.data import pictures
from refocus_jax.data.token_cache import TokenSet
from refocus_jax.evaluation import comparison, measurements, metrics
from refocus_jax.evaluation.reference import Reference
from refocus_jax.focus.resample import resize
from refocus_jax.judges.features import Extractor
from refocus_jax.models.bound import Bound
from refocus_jax.models.tokenizer import DualTokenizer, to_unit_range
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.sampling.decode import SamplingSettings, sample, sample_keys
from refocus_jax.training.codebook import count
from refocus_jax.training.generator_task import GeneratorTask, token_hits, token_losses


def _jit(mesh, function):
    """Jits a measurement of a batch that is divided among the devices; every process gets all results."""
    return jax.jit(mesh_lib.on_mesh(mesh, function), out_shardings=mesh_lib.replicated(mesh))


def _collected(results: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Concatenates the measurements of the examples of all batches, by name."""
    found = clu_metrics.CollectingMetric.empty()
    for result in results:
        found = found.merge(clu_metrics.CollectingMetric({name: (array,) for name, array in result.items()}))
    return found.compute()


def _squared_error(a_bhwc: jax.Array, b_bhwc: jax.Array) -> jax.Array:
    return jnp.square(a_bhwc - b_bhwc).mean(axis=(1, 2, 3))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerEvaluator:
    """Measures reconstructions, views and code usage of a tokenizer pair, without noise, and makes pictures.

    Attributes:
      tokenizer: The tokenizers.
      batches: Batches of held-out uint8 `image`s, which can be iterated again and again.
      mesh: The mesh of devices.
      num_pictures: The number of images in the pictures.
    """

    tokenizer: DualTokenizer
    batches: Iterable
    mesh: Any
    num_pictures: int = 6

    def _thumbnail(self, image):
        """The baseline for PSNR: the image area-averaged to p_K x p_K and enlarged again, without quantization."""
        small = resize(image, self.tokenizer.grid_sizes[-1], "area")
        return jnp.clip(resize(small, image.shape[1], "bicubic"), -1, 1)

    @functools.cached_property
    def _measure(self):
        tokenizer, structure = self.tokenizer, self.tokenizer.structure

        def measure(params, image_uint8):
            image = to_unit_range(image_uint8)
            views = tokenizer.optics.views(image)
            latents = structure.apply({"params": params["structure"]}, [v.focused for v in views], method="latents")
            quantized = structure.apply({"params": params["structure"]}, latents, method="quantize")
            if structure.pyramid == "focus":
                *coarse, decoded = tokenizer.decode_views(params, quantized.f_hats)
            else:  # the coarser latents of a `var` pyramid are not trained to be decoded
                coarse, decoded = [], tokenizer.decode(params, quantized.f_hats[-1])
            errors = {"image": _squared_error(decoded, image),
                      "thumbnail": _squared_error(self._thumbnail(image), image)}
            shown = {"decoded": decoded[:self.num_pictures]}
            for k, drawn in enumerate(coarse):
                errors[f"view/scale_{k + 1}"] = _squared_error(drawn, views[k].focused)
            pooled = [resize(latents[-1], z.shape[1], "area") for z in latents]
            gaps = jnp.stack([jnp.stack([jnp.sum(jnp.square(z - a)), jnp.sum(jnp.square(a))])
                              for z, a in zip(latents[:-1], pooled, strict=False)])
            counts = {"structure": jnp.stack([count([t], structure.quantizer.vocab_size) for t in quantized.tokens])}
            if tokenizer.alias is not None:
                alias = Bound(tokenizer.alias, tokenizer.alias_params(params))
                tokens = tokenizer.encode(params, image)[1]
                counts["alias"] = jnp.stack([count([t], alias.module.codebook.vocab_size) for t in tokens])
                drawn = alias("decode", [alias("embed", t) for t in tokens])
                for k, residual in enumerate(tokenizer.residuals(views)):
                    errors[f"alias/scale_{k + 1}"] = _squared_error(params["residual_std"][k] * drawn[k], residual)
                    errors[f"alias_power/scale_{k + 1}"] = jnp.square(residual).mean(axis=(1, 2, 3))
            return errors, counts, gaps, shown

        return _jit(self.mesh, measure)

    def __call__(self, state, frozen) -> Iterator[tuple[str, Any]]:
        """Yields names and values of the numbers and pictures for a state."""
        del frozen
        results = list(mesh_lib.fetched(self._measure(state.params, mesh_lib.put_batch(self.mesh, batch["image"]))
                                        for batch in self.batches))
        errors = _collected(result[0] for result in results)
        counts = {name: sum(r[1][name] for r in results) for name in results[0][1]}
        yield "validation/psnr", metrics.psnr(errors["image"])
        yield "validation/thumbnail_psnr", metrics.psnr(errors["thumbnail"])
        yield "validation/psnr_gain", metrics.psnr(errors["image"]) - metrics.psnr(errors["thumbnail"])
        for k in range(len(self.tokenizer.grid_sizes) - 1):
            scale = f"scale_{k + 1}"
            if f"view/{scale}" in errors:
                yield f"validation/view_psnr/{scale}", metrics.psnr(errors[f"view/{scale}"])
            power = errors.get(f"alias_power/{scale}", np.zeros(1)).mean()
            if power:  # without blur there is no residual
                yield f"validation/alias_explained/{scale}", 1 - errors[f"alias/{scale}"].mean() / power
        for stream, per_scale in counts.items():
            for name, value in metrics.codebook_use(stream, per_scale).items():
                yield f"validation/{name}", value
        for k, (difference, norm) in enumerate(sum(r[2] for r in results)):
            yield f"validation/latent_gap/scale_{k + 1}", float(np.sqrt(difference / norm))
        yield from self._pictures(results[0][3])

    def _pictures(self, shown) -> Iterator[tuple[str, np.ndarray]]:
        optics = self.tokenizer.optics
        image = to_unit_range(jnp.asarray(next(iter(self.batches))["image"][:self.num_pictures]))
        views = jax.device_get(optics.views(image[:3]))
        yield "focus_pyramid", pictures.focus_pyramid(views, optics.grid_sizes, list(optics.radii()), optics.image_size)
        yield "reconstructions", pictures.reconstructions(*map(np.asarray, (image, self._thumbnail(image),
                                                                            shown["decoded"])))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleDistance:
    """Measures Fréchet distances of samples from a reference while the generator trains.

    Attributes:
      extractor: The feature network, on the devices of this process.
      reference: What samples are compared with.
      count: The number of samples.
      batch_size: The number of samples drawn at a time, over all devices.
    """

    extractor: Extractor
    reference: Reference
    count: int
    batch_size: int

    def __call__(self, draw: Callable[[np.ndarray, int], Any], num_classes: int) -> dict[str, float]:
        """Draws samples and measures their distances.

        Args:
          draw: (labels (b,), number of the first image) -> images in [-1, 1]; every process gets all of them. The
            devices draw one batch while the features of the last are computed.
          num_classes: The number of classes.

        Returns:
          The distances by name.
        """
        labels = np.resize(np.arange(num_classes, dtype=np.int32), -(-self.count // self.batch_size) * self.batch_size)
        starts = range(0, self.count, self.batch_size)
        drawn = mesh_lib.fetched(draw(labels[start:start + self.batch_size], start) for start in starts)
        parts = [measurements.features_now(pictures.to_uint8(images)[:self.count - start], self.extractor)
                 for start, images in zip(starts, drawn, strict=True)]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return comparison.frechet(columns, self.reference, self.extractor.distance)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorEvaluator:
    """Measures student and teacher on held-out tokens, compares them with unigram models, and draws samples.

    Attributes:
      task: The training task of stage 2.
      validation: Held-out tokens; every process has all of them.
      train: Training tokens from which the unigram models are made; None to leave the comparison out.
      class_names: The names of the classes.
      mesh: The mesh of devices.
      sampling: How samples are drawn.
      batch_size: The number of examples per batch, over all devices.
      seed: The seed of the samples, the same at every evaluation.
      samples_per_class: The number of samples per class in the pictures.
      max_classes: The largest number of classes in the pictures.
      distance: The comparison of samples with a reference; None to leave it out.
    """

    task: GeneratorTask
    validation: TokenSet
    train: TokenSet | None
    class_names: tuple[str, ...]
    mesh: Any
    sampling: SamplingSettings
    batch_size: int
    seed: int = 0
    samples_per_class: int = 6
    max_classes: int = 16
    distance: SampleDistance | None = None

    @functools.cached_property
    def _measure(self):
        task = self.task

        def measure(params, frozen, batch):
            inputs = task.inputs(frozen, batch["structure"])
            logits, captured = task.student_logits(params, batch["label"], inputs)
            losses = token_losses(logits, batch["structure"])
            found = {"losses": losses, "hits": token_hits(logits, batch["structure"])}
            if task.teacher.enabled:
                alias = task.evidence(batch["alias"], batch["label"])
                output, _ = task.teach(params, frozen, captured, batch["label"], inputs, alias)
                found["teacher"] = token_losses(output.logits, batch["structure"][:, task.first_alias_token:])
            return found

        return _jit(self.mesh, measure)

    def _drawn(self, student_params, frozen, labels, start) -> list[jax.Array]:
        """Draws samples and returns their cumulative latents after every scale."""
        quantizer = Bound(self.task.tokenizer.structure.quantizer, frozen["structure"]["quantizer"])
        return sample(Bound(self.task.student, student_params), quantizer, labels,
                      sample_keys(self.seed, labels, start), self.sampling).f_hat

    @functools.cached_property
    def _sample(self):
        def run(params, frozen, labels, start):
            f_hats = self._drawn(params["student"], frozen, labels, start)
            return self.task.tokenizer.decode_views(frozen, f_hats)

        return jax.jit(run, out_shardings=mesh_lib.replicated(self.mesh))

    @functools.cached_property
    def _draw(self):
        """A jitted function that draws images for labels, which are divided among the devices."""
        return _jit(self.mesh, lambda params, frozen, labels, start: self.task.tokenizer.decode(
            frozen, self._drawn(params, frozen, labels, start)[-1]))

    def _distances(self, params, frozen) -> Iterator[tuple[str, float]]:
        def draw(labels: np.ndarray, start: int) -> jax.Array:
            labels = mesh_lib.put_whole(labels, mesh_lib.batch_sharding(self.mesh))
            return self._draw(params["student"], frozen, labels, np.uint32(start))

        assert self.distance is not None
        for name, value in self.distance(draw, len(self.class_names)).items():
            yield f"validation/{name}", value

    def __call__(self, state, frozen) -> Iterator[tuple[str, Any]]:
        """Yields names and values of the numbers and pictures for a state."""
        params = {**state.params, "student": state.sampled}
        yield from self._numbers(params, frozen)
        if self.distance is not None:
            yield from self._distances(params, frozen)
        yield from self._pictures(params, frozen)

    def per_token(self, params, frozen) -> dict[str, np.ndarray]:
        """Measures every held-out token of n examples, as many as fill batches.

        Args:
          params: The parameters of student and teacher.
          frozen: The parameters of the tokenizers.

        Returns:
          "losses" of the student in nats and "hits" of its most likely guess, (n, L) each; with a teacher also
          "teacher", its losses over the scales that it teaches.
        """
        tokens, sharding = self.validation, mesh_lib.batch_sharding(self.mesh)
        starts = range(0, len(tokens) - self.batch_size + 1, self.batch_size)
        return _collected(mesh_lib.fetched(self._measure(params, frozen, mesh_lib.put_whole(
            tokens[slice(i, i + self.batch_size)], sharding)) for i in starts))

    def _numbers(self, params, frozen) -> Iterator[tuple[str, float]]:
        offsets, found = self.task.student.offsets, self.per_token(params, frozen)
        losses, hits = found["losses"], found["hits"]
        spans = list(itertools.pairwise(offsets))
        for k, (a, b) in enumerate(spans):
            yield f"validation/cross_entropy/scale_{k + 1}", losses[:, a:b].mean()
            yield f"validation/accuracy/scale_{k + 1}", hits[:, a:b].mean()
        yield "validation/cross_entropy/all", losses.mean()
        yield "validation/bits_per_image", losses.sum(1).mean() / np.log(2)
        if self.train is not None:
            yield from self._unigram(losses, spans)
        if self.task.teacher.enabled:
            difference = found["teacher"] - losses[:, self.task.first_alias_token:]
            mean, low, high = metrics.bootstrap_interval(difference.mean(1))
            yield "validation/teacher_minus_student/mean", mean
            yield "validation/teacher_minus_student/low", low
            yield "validation/teacher_minus_student/high", high

    def _unigram(self, losses: np.ndarray, spans) -> Iterator[tuple[str, float]]:
        assert self.train is not None
        count, vocab_size = len(losses), self.task.student.vocab_size
        offsets, sizes = self.task.student.offsets, np.array([b - a for a, b in spans])
        held_out = metrics.unigram_cross_entropy(self.validation.structure[:count], self.validation.label[:count],
                                                 self.train.structure, self.train.label, offsets, vocab_size)
        entropy = metrics.unigram_entropy(self.train.structure, self.train.label, offsets, vocab_size)
        for k, (floor, own) in enumerate(zip(held_out, entropy, strict=True)):
            yield f"validation/unigram_cross_entropy/scale_{k + 1}", floor
            yield f"validation/unigram_entropy/scale_{k + 1}", own
        for name, value in (("cross_entropy", held_out), ("entropy", entropy)):
            mean = (value * sizes).sum() / sizes.sum()
            yield f"validation/unigram_{name}/all", mean
            yield f"validation/below_unigram_{name}", 1 - losses.mean() / mean

    def _pictures(self, params, frozen) -> Iterator[tuple[str, Any]]:
        classes = np.arange(min(len(self.class_names), self.max_classes))
        names = [self.class_names[c] for c in classes]
        stages = list(mesh_lib.fetched(
            self._sample(params, frozen, classes.astype(np.int32), np.uint32(i * len(self.class_names)))
            for i in range(self.samples_per_class)))
        images = np.stack([stage[-1] for stage in stages], axis=1)
        yield "samples", pictures.sample_grid(images, names)
        strip, frames = pictures.focus_pull(stages[0], names, self.task.student.grid_sizes)
        yield "focus_pull", strip
        yield "focus_pull", frames
