"""`--mode=plan`: what a config needs of a machine that is not here."""

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from refocus_jax import build, validate
from refocus_jax.planning import flops, report
from refocus_jax.planning.compile import Program, compile_program
from refocus_jax.planning.targets import Target, cudnn_taken_for_granted, load
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime.writer import write_json
from refocus_jax.sampling import decode
from refocus_jax.training import loop

PROGRAMS = ("tokenizer", "generator", "sample")
_DEFAULT_CLASSES = 1000  # ImageNet's, as no data is opened


def plan(c: ConfigDict, workdir: str, topology: str | None) -> None:
    """Compiles the programs of `config.plan.programs` for a machine, prints what they need, and writes plan.json.

    Args:
      topology: see `planning.targets.load`.

    Raises:
      ValueError: settings or a topology that make no sense. ImportError: a compiler is missing.
    """
    if not topology:
        raise ValueError("--topology is not given; give the machine to plan for, as tpu:v5e:4x4 or gpu:a100:1x8")
    if unknown := set(c.plan.programs) - set(PROGRAMS):
        raise ValueError(f"plan.programs has {', '.join(sorted(unknown))}; choose from {', '.join(PROGRAMS)}")
    # No device is needed, and jax's plug-ins for those that are planned for must not look for any.
    jax.config.update("jax_platforms", "cpu")
    target = load(topology)
    planner = Planner(c, target, mesh_lib.make_mesh(target.devices, **c.mesh))
    validate.check(c, planner.mesh.size)
    # What is compiled for devices that are not here cannot be read back from the cache of what was compiled.
    settings = {"jax_optimization_level": c.plan.optimization, "jax_enable_compilation_cache": False}
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        with cudnn_taken_for_granted():
            content = {"run": os.path.basename(os.path.normpath(workdir)), "topology": topology,
                       "chips": planner.mesh.size, "mesh": dict(planner.mesh.shape), **planner.sizes(),
                       "programs": {name: planner.describe(name) for name in c.plan.programs}}
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    write_json(os.path.join(workdir, "plan.json"), content)
    print(report.lines(content))


@dataclasses.dataclass(frozen=True)
class Planner:
    """A config on a machine."""

    config: ConfigDict
    target: Target
    mesh: Any

    @property
    def num_classes(self) -> int:
        return self.config.data.num_classes or _DEFAULT_CLASSES

    def sizes(self) -> dict[str, Any]:
        """Parameters, and what the teacher adds to a student that trains alone."""
        c = self.config
        task = build.generator_task(c, self.num_classes, "cpu")
        params = jax.eval_shape(task.init, jax.random.key(0)).params
        tokenizers = jax.eval_shape(task.tokenizer.init, jax.random.key(0))
        found = {"parameters": {name: _size(tree) for name, tree in {**params, **tokenizers}.items()}}
        if c.teacher.enabled:
            # Of transformers on tokens: making the tokens is no part of the comparison.
            with_teacher, alone = (
                self._plain({"teacher.enabled": enabled, "data.token_examples": 1})._flops("generator")
                for enabled in (True, False))
            found["teacher_over_student"] = {"flops": with_teacher / alone - 1,
                                             "parameters": _size(params["teacher"]) / _size(params["student"])}
        return found

    def describe(self, name: str) -> dict[str, Any]:
        """One program: its needs, what it costs, and what would help if it does not fit."""
        c = self.config
        batch = self._batch_size(name)
        program = self._compile(name, batch)
        steps = c[f"{name}_training"].steps if name != "sample" else None
        count = self._plain({})._flops(name)
        rate = self.mesh.size * self.target.chip.peak_flops * c.plan.utilization
        return {
            "batch": batch, "batch_per_chip": batch / self.mesh.size, "fits": program.fits,
            "peak_bytes_per_chip": program.peak_bytes_per_chip,
            "capacity_bytes_per_chip": program.capacity_bytes_per_chip,
            "short_bytes_per_chip": program.short_bytes_per_chip,
            "state_bytes_per_chip": program.state_bytes_per_chip, "collectives": program.collectives,
            "compile_seconds": program.seconds, "flops_per_step": count, "steps": steps,
            "utilization": c.plan.utilization, "days": steps and steps * count / rate / 86400,
            "largest_batch_per_chip": self._largest_batch(name, batch, program) if c.plan.search_batch else None,
            "remedies": [] if program.fits else self._remedies(name, program)}

    def _batch_size(self, name: str) -> int:
        """Of all chips together."""
        c = self.config
        return c.draw.batch_size * self.mesh.size if name == "sample" else c[f"{name}_batch_size"]

    def _compile(self, name: str, batch: int) -> Program:
        program: Callable = getattr(self, f"_{name}")
        return compile_program(self.target, *program(batch))

    def _images(self, batch: int):
        shape = (batch, self.config.image_size, self.config.image_size, 3)
        return jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=mesh_lib.batch_sharding(self.mesh))

    def _labels(self, batch: int):
        return jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=mesh_lib.batch_sharding(self.mesh))

    @property
    def _key(self):
        return mesh_lib.abstract(jax.eval_shape(lambda: jax.random.key(0)), mesh_lib.replicated(self.mesh))

    def _frozen(self):
        """The tokenizers, as stage 2 has them."""
        params = jax.eval_shape(build.tokenizer_task(self.config).init, jax.random.key(0)).params
        return mesh_lib.abstract(params, mesh_lib.replicated(self.mesh))

    def _step(self, task, frozen, batch, settings):
        state = loop.abstract_state(task, self.mesh)
        update = loop.jit_update(task, loop.LoopSettings(**settings), self.mesh)
        return update, (state, frozen, batch, self._key), (state, frozen)

    def _tokenizer(self, batch: int):
        c = self.config
        images = {"image": self._images(batch), "label": self._labels(batch)}
        task = build.tokenizer_task(c)
        frozen = mesh_lib.abstract(task.frozen_shapes, mesh_lib.replicated(self.mesh))
        return self._step(task, frozen, images, c.tokenizer_training)

    def _generator(self, batch: int):
        c = self.config
        task = build.generator_task(c, self.num_classes, self.target.platform)
        return self._step(task, self._frozen(), self._generator_batch(task, batch), c.generator_training)

    def _generator_batch(self, task, batch: int):
        """Tokens where the config reads them from a cache, else images."""
        if not (self.config.data.tokens or self.config.data.token_examples):
            return {"image": self._images(batch), "label": self._labels(batch)}
        lengths = {"structure": task.student.offsets[-1]}
        if task.teacher.enabled:
            lengths["alias"] = task.student.offsets[-2]
        return {"label": self._labels(batch)} | {
            name: jax.ShapeDtypeStruct((batch, length), jnp.int32, sharding=mesh_lib.batch_sharding(self.mesh))
            for name, length in lengths.items()}

    def _sample(self, batch: int):
        """Images of `draw.batch_size` classes per chip, from labels to pixels."""
        c = self.config
        student = build.student(c, self.num_classes, self.target.platform)
        tokenizer, settings = build.tokenizer(c), build.sampling_settings(c)

        def run(params, frozen, labels, seed):
            drawn = decode.sample(student, params, tokenizer.structure.quantizer, frozen["structure"]["quantizer"],
                                  labels, decode.sample_keys(seed, labels), settings)
            return tokenizer.decode_view(frozen, drawn.f_hat[-1], len(c.grid_sizes) - 1)

        task = build.generator_task(c, self.num_classes, self.target.platform)
        params = loop.abstract_state(task, self.mesh).params["student"]
        frozen = {"structure": self._frozen()["structure"]}
        seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=mesh_lib.replicated(self.mesh))
        jitted = jax.jit(mesh_lib.on_mesh(self.mesh, run), out_shardings=mesh_lib.batch_sharding(self.mesh))
        return jitted, (params, frozen, self._labels(batch), seed), (params, frozen)

    def _flops(self, name: str) -> float:
        """Of one step, by its jitted function and the shapes that it takes."""
        jitted, arguments, _ = getattr(self, f"_{name}")(self._batch_size(name))
        return flops.count(jitted, *arguments)

    def _plain(self, changes: dict[str, Any]) -> "Planner":
        """What training needs and no more: nothing is computed again, and attention is dense products."""
        c = self.config.copy_and_resolve_references()
        c.update_from_flattened_dict({"tokenizer.remat": "none", "generator.remat": "none",
                                      "generator.attention": "prefix", "tokenizer_batch_parts": 1,
                                      "generator_batch_parts": 1, **changes})
        return dataclasses.replace(self, config=c)

    def _largest_batch(self, name: str, batch: int, program: Program) -> int:
        """Per chip, to within an eighth of it; 0 if not even one fits."""
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
        """Settings that lower the memory, those that cost least first."""
        c, found = self.config, []
        fsdp, chips = self.mesh.shape[mesh_lib.FSDP_AXIS], self.mesh.size
        if name == "sample":
            found.append(f"draw.batch_size less than {c.draw.batch_size}")
        elif self._batch_size(name) > chips:
            parts = c[f"{name}_batch_parts"]
            if self._batch_size(name) % (2 * parts * chips) == 0:
                found.append(f"{name}_batch_parts={2 * parts}: the same batch in twice as many parts")
        if name != "sample" and c[name].remat != "blocks":
            found.append(f"{name}.remat=blocks: blocks are computed again in the backward pass")
        if name == "generator" and not (c.data.tokens or c.data.token_examples):
            found.append("data.tokens=PATH: train from encoded tokens (--mode=encode), without tokenizers in the step")
        if fsdp < chips and program.state_bytes_per_chip > program.capacity_bytes_per_chip / 8:
            found.append(f"mesh.fsdp={min(2 * fsdp, chips)}: parameters and optimizer state of "
                         f"{program.state_bytes_per_chip / 2**30:.1f} GiB per chip, divided among more chips")
        return found or ["more chips, or a smaller model"]


def _size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
