"""Estimates what the programs of training and sampling need on a machine that is not present."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from refocus_jax.models.bound import Bound
from refocus_jax.models.sharding import FSDP_AXIS
from refocus_jax.planning import flops
from refocus_jax.planning.compile import Program, compile_program
from refocus_jax.planning.targets import Target
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.sampling import decode
from refocus_jax.training import loop
from refocus_jax.training.generator_task import GeneratorTask
from refocus_jax.training.tokenizer_task import TokenizerTask

PROGRAMS = ("tokenizer", "generator", "sample")

# The fraction of the chips' peak that VAR's authors reached. They trained d16 on ImageNet for 200 epochs in 2.5 days on
# 16 A100s (https://github.com/FoundationVision/VAR/issues/26): 1,281,167 * 200 / (2.5 * 86,400 * 16) = 74.1 images per
# second and GPU. `flops.count` of a step of that transformer is 0.913 TFLOP per image, and an A100's peak is 312 TFLOP
# per second: 0.913 * 74.1 / 312 = 21.7 %. Their steps also encode the images, which is not counted; with the encoder it
# would be 26.7 %.
VAR_UTILIZATION = 0.217


@dataclasses.dataclass(frozen=True, kw_only=True)
class Programs:
    """What is to be compiled.

    Attributes:
      tokenizer: The training task of stage 1.
      generator: The training task of stage 2.
      sampling: How samples are drawn.
      loop: The settings of the training loop of each stage, by its name.
      batch_sizes: The batch size of each program; per chip for "sample", otherwise over all chips.
      cached_tokens: Whether stage 2 reads tokens instead of images.
    """

    tokenizer: TokenizerTask
    generator: GeneratorTask
    sampling: decode.SamplingSettings
    loop: Mapping[str, loop.LoopSettings]
    batch_sizes: Mapping[str, int]
    cached_tokens: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planner:
    """Estimates the needs of programs on a machine.

    Attributes:
      make: Makes the `Programs` of the config with some settings changed, given by their dotted names.
      target: The machine; None if nothing is compiled, but only FLOPs are counted.
      mesh: The mesh of devices.
    """

    make: Callable[[Mapping[str, Any]], Programs]
    target: Target | None
    mesh: Any

    @functools.cached_property
    def programs(self) -> Programs:
        """The programs of the unchanged config."""
        return self.make({})

    def sizes(self) -> dict[str, Any]:
        """Counts the parameters of all networks, and what the teacher adds to a student that trains alone."""
        task = self.programs.generator
        params = jax.eval_shape(task.init, jax.random.key(0)).params
        tokenizers = jax.eval_shape(task.tokenizer.init, jax.random.key(0))
        found: dict[str, Any] = {"parameters": {name: _size(tree) for name, tree in {**params, **tokenizers}.items()}}
        if task.teacher.enabled:
            # Transformers on tokens are compared: making the tokens is not part of the comparison.
            with_teacher, alone = (
                self._plain({"generator.teacher.enabled": enabled, "data.token_examples": 1})._flops("generator")
                for enabled in (True, False))
            found["teacher_over_student"] = {"flops": with_teacher / alone - 1,
                                             "parameters": _size(params["teacher"]) / _size(params["student"])}
        return found

    def describe(self, name: str, utilization: float, search_batch: bool) -> dict[str, Any]:
        """Compiles one program and describes what it needs and what would help if it does not fit.

        Days are those of `utilization` and those of `VAR_UTILIZATION`; nobody has measured this program's own.

        Args:
          name: One of `PROGRAMS`.
          utilization: The fraction of the chips' peak that the estimated days assume.
          search_batch: Whether to search for the largest batch that fits.
        """
        assert self.target is not None
        batch = self._batch_size(name)
        program = self._compile(name, batch)
        steps = None if name == "sample" else self.programs.loop[name].steps
        count = self.flops(name)
        days_at_peak = steps and steps * count / (self.mesh.size * self.target.chip.peak_flops) / 86400
        return {
            "batch": batch, "batch_per_chip": batch / self.mesh.size, "fits": program.fits,
            "peak_bytes_per_chip": program.peak_bytes_per_chip,
            "capacity_bytes_per_chip": program.capacity_bytes_per_chip,
            "short_bytes_per_chip": program.short_bytes_per_chip,
            "state_bytes_per_chip": program.state_bytes_per_chip, "collectives": program.collectives,
            "compile_seconds": program.seconds, "flops_per_step": count, "steps": steps,
            "utilization": utilization, "days": days_at_peak and days_at_peak / utilization,
            "days_at_var_utilization": days_at_peak and days_at_peak / VAR_UTILIZATION,
            "largest_batch_per_chip": self._largest_batch(name, batch, program) if search_batch else None,
            "remedies": [] if program.fits else self._remedies(name, program)}

    def _batch_size(self, name: str) -> int:
        """Returns the batch size of a program over all chips."""
        size = self.programs.batch_sizes[name]
        return size * self.mesh.size if name == "sample" else size

    def _compile(self, name: str, batch: int) -> Program:
        assert self.target is not None
        program: Callable = getattr(self, f"_{name}")
        return compile_program(self.target, *program(batch))

    def _images(self, batch: int):
        size = self.programs.generator.tokenizer.optics.image_size
        shape = (batch, size, size, 3)
        return jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=mesh_lib.batch_sharding(self.mesh))

    def _labels(self, batch: int):
        return jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=mesh_lib.batch_sharding(self.mesh))

    @property
    def _key(self):
        return mesh_lib.abstract(jax.eval_shape(lambda: jax.random.key(0)), mesh_lib.replicated(self.mesh))

    def _frozen(self):
        """Returns the shapes of the tokenizers' parameters as stage 2 has them."""
        params = jax.eval_shape(self.programs.tokenizer.init, jax.random.key(0)).params
        return mesh_lib.abstract(params, mesh_lib.replicated(self.mesh))

    def _step(self, task, frozen, batch):
        state = loop.abstract_state(task, self.mesh)
        update = loop.jit_update(task, self.programs.loop[task.name], self.mesh, state)
        return update, (state, frozen, batch, self._key), (state, frozen)

    def _tokenizer(self, batch: int):
        images, task = {"image": self._images(batch), "label": self._labels(batch)}, self.programs.tokenizer
        return self._step(task, mesh_lib.abstract(task.frozen_shapes, mesh_lib.replicated(self.mesh)), images)

    def _generator(self, batch: int):
        return self._step(self.programs.generator, self._frozen(), self._generator_batch(batch))

    def _generator_batch(self, batch: int):
        """Returns the shapes of a batch: tokens if the config reads them from a cache, otherwise images."""
        if not self.programs.cached_tokens:
            return {"image": self._images(batch), "label": self._labels(batch)}
        task = self.programs.generator
        lengths = {"structure": task.student.offsets[-1]}
        if task.teacher.enabled:
            lengths["alias"] = task.student.offsets[-2]
        return {"label": self._labels(batch)} | {
            name: jax.ShapeDtypeStruct((batch, length), jnp.int32, sharding=mesh_lib.batch_sharding(self.mesh))
            for name, length in lengths.items()}

    def _sample(self, batch: int):
        """Makes the program that draws images from labels, `sample.batch_size` per chip."""
        task, settings = self.programs.generator, self.programs.sampling
        tokenizer = task.tokenizer

        def run(params, frozen, labels, seed):
            quantizer = Bound(tokenizer.structure.quantizer, frozen["structure"]["quantizer"])
            drawn = decode.sample(Bound(task.student, params), quantizer, labels, decode.sample_keys(seed, labels),
                                  settings)
            return tokenizer.decode_view(frozen, drawn.f_hat[-1], len(tokenizer.grid_sizes) - 1)

        params = loop.abstract_state(task, self.mesh).params["student"]
        frozen = {"structure": self._frozen()["structure"]}
        seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=mesh_lib.replicated(self.mesh))
        jitted = jax.jit(mesh_lib.on_mesh(self.mesh, run), out_shardings=mesh_lib.batch_sharding(self.mesh))
        return jitted, (params, frozen, self._labels(batch), seed), (params, frozen)

    def flops(self, name: str) -> float:
        """Counts the FLOPs of one step on all devices together, without recomputation."""
        return self._plain({})._flops(name)

    def _flops(self, name: str) -> float:
        """Counts the FLOPs of one step from its jitted function and the shapes of its arguments."""
        jitted, arguments, _ = getattr(self, f"_{name}")(self._batch_size(name))
        return flops.count(jitted, *arguments)

    def _plain(self, changes: Mapping[str, Any]) -> "Planner":
        """Returns a planner of programs that recompute nothing and compute attention by dense products."""
        plain = {"tokenizer.model.remat": "none", "generator.model.remat": "none",
                 "generator.model.attention": "prefix", "tokenizer.train.microbatches": 1,
                 "generator.train.microbatches": 1, **changes}
        return dataclasses.replace(self, make=lambda more: self.make({**plain, **more}))

    def _largest_batch(self, name: str, batch: int, program: Program) -> int:
        """Searches for the largest batch per chip that fits, to within an eighth of it; 0 if not even one does."""
        fits, chips = {}, self.mesh.size
        per_chip = max(1, batch // chips)
        if per_chip * chips == batch:
            fits[per_chip] = program.fits

        def works(size: int) -> bool:
            if size not in fits:
                fits[size] = self._compile(name, size * chips).fits
            return fits[size]

        low, high = 0, per_chip
        while works(high):
            low, high = high, 2 * high
        while low == 0 and high > 1:
            low, high = (high // 2, high) if works(high // 2) else (0, high // 2)
        while high - low > max(1, low // 8):
            middle = (low + high) // 2
            low, high = (middle, high) if works(middle) else (low, middle)
        return low

    def _remedies(self, name: str, program: Program) -> list[str]:
        """Suggests settings that lower the memory, those that cost least first."""
        found, chips = [], self.mesh.size
        fsdp = self.mesh.shape[FSDP_AXIS]
        if name == "sample":
            found.append(f"sample.batch_size less than {self.programs.batch_sizes[name]}")
        else:
            task = getattr(self.programs, name)
            if self._batch_size(name) % (2 * task.microbatches * chips) == 0:
                found.append(f"{name}.train.microbatches={2 * task.microbatches}: the same batch in twice as many "
                             "parts")
            if _remat(task) != "blocks":
                found.append(f"{name}.model.remat=blocks: blocks are recomputed in the backward pass")
        if name == "generator" and not self.programs.cached_tokens:
            found.append("data.tokens=PATH: train on encoded tokens (--mode=encode), without tokenizers in the step")
        if fsdp < chips and program.state_bytes_per_chip > program.capacity_bytes_per_chip / 8:
            found.append(f"mesh.fsdp={min(2 * fsdp, chips)}: parameters and optimizer state of "
                         f"{program.state_bytes_per_chip / 2**30:.1f} GiB per chip, divided among more chips")
        return found or ["more chips, or a smaller model"]


def _remat(task: TokenizerTask | GeneratorTask) -> str:
    return task.student.remat if isinstance(task, GeneratorTask) else task.tokenizer.structure.autoencoder.remat


def _size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
