"""A plan for GPUs that are not present, from a config to plan.json and the printed text."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import pytest

from configs import d16
from refocus_jax.config import build
from refocus_jax.judges import perceptual, state_dict, vgg
from refocus_jax.modes import plan
from refocus_jax.planning import flops, targets
from refocus_jax.planning.compile import Program
from refocus_jax.planning.planner import PROGRAMS, VAR_UTILIZATION, Planner
from refocus_jax.reporting import plans
from refocus_jax.runtime import mesh as mesh_lib


@pytest.fixture
def config(micro):
    c = micro()
    c.tokenizer.train.batch_size, c.generator.train.batch_size = 8, 16
    c.data.validation_examples = 16
    c.mesh.fsdp = 4
    return c


def planner_of(config, **mesh) -> Planner:
    target = targets.load("gpu:a100:1x8")
    return Planner(make=functools.partial(build.programs, config, "gpu"), target=target,
                   mesh=mesh_lib.make_mesh(target.devices, **mesh))


def test_a_small_plan(config, tmp_path, capsys):
    config.plan.update(programs=("generator",), topology="gpu:a100:1x8")
    plan.run(config, str(tmp_path / "run"))
    found = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert found["chips"] == 8 and found["mesh"] == {"data": 2, "fsdp": 4}
    assert found["teacher_over_student"]["flops"] > 0 and found["parameters"]["student"] > 0
    program = found["programs"]["generator"]
    assert program["fits"] and program["remedies"] == []
    assert 0 < program["state_bytes_per_chip"] < program["peak_bytes_per_chip"] < program["capacity_bytes_per_chip"]
    assert program["capacity_bytes_per_chip"] == int(0.75 * 84987740160)
    # Weights are gathered where they are used, gradients are summed.
    assert program["collectives"]["all-gather"]["bytes"] > 0 and "all-reduce" in program["collectives"]
    seconds = program["steps"] * program["flops_per_step"] / (8 * 312e12 * 0.4)
    assert program["days"] == pytest.approx(seconds / 86400)
    assert program["days_at_var_utilization"] == pytest.approx(0.4 / 0.217 * seconds / 86400)
    printed = capsys.readouterr().out
    assert "days at 40% of the chips' bfloat16 peak, which is assumed; " in printed
    assert "days at the 21.7% that VAR's authors reached" in printed
    assert "run on gpu:a100:1x8: 8 chips as 2 x 4" in printed and "generator, batch 16 (2 per chip): fits" in printed


def test_the_share_that_vars_authors_reached_is_that_of_our_count():
    """Plain VAR d16 on tokens: 1,281,167 images, 200 epochs, 2.5 days, 16 A100s of 312 TFLOP per second."""
    c = d16.get_config("teacher=off")
    c.data.token_examples = c.generator.train.batch_size
    planner = Planner(make=functools.partial(build.programs, c, "gpu"), target=None, mesh=mesh_lib.make_mesh())
    images_per_second = 1_281_167 * 200 / (2.5 * 86400 * 16)
    flops_per_second = planner.flops("generator") / c.generator.train.batch_size * images_per_second
    assert flops_per_second / targets.GPUS["a100"].peak_flops == pytest.approx(VAR_UTILIZATION, abs=5e-4)


def test_the_perceptual_loss_is_counted(config):
    """A plan uses only shapes and reads no weights. The cost is that of the distance and its gradient."""
    config.image_size, config.tokenizer.perceptual_network = 16, "vgg16:absent.pth"
    config.grid_sizes = (1, 2, 8)
    counted = {}
    for weight in (0.0, 0.1):
        config.tokenizer.loss.perceptual = weight
        counted[weight] = planner_of(config).flops("tokenizer")
    network, image = vgg.Vgg16(), jax.ShapeDtypeStruct((8, 16, 16, 3), jnp.float32)
    distance = jax.value_and_grad(functools.partial(perceptual.distance, network), argnums=1)
    alone = flops.count(distance, state_dict.parameter_shapes(network), image, image)
    assert alone > 0 and counted[0.1] - counted[0.0] == pytest.approx(alone, rel=1e-6)


def test_what_does_not_fit_says_by_how_much_and_what_would_help(config):
    planner = planner_of(config, **config.mesh)
    short = Program(peak_bytes_per_chip=2**34, capacity_bytes_per_chip=2**33, short_bytes_per_chip=2**33,
                    state_bytes_per_chip=2**32, collectives={}, seconds=1.0)
    tokenizer, generator, sample = (" ".join(planner._remedies(name, short)) for name in PROGRAMS)
    assert "generator.train.microbatches=2" in generator and "generator.model.remat=blocks" in generator
    assert "mesh.fsdp=8: parameters and optimizer state of 4.0 GiB" in generator
    assert "tokenizer.train.microbatches" not in tokenizer and "mesh.fsdp=8" in tokenizer  # one image per chip already
    assert "sample.batch_size less than 8" in sample
    described = {"batch": 16, "batch_per_chip": 2, "fits": short.fits, "flops_per_step": 1e12, "steps": 10, "days": 1.0,
                 "utilization": 0.4, "days_at_var_utilization": 2.0, "largest_batch_per_chip": 1,
                 "compile_seconds": 1.0, "remedies": [generator]} | {
        name: value for name, value in dataclasses.asdict(short).items() if name != "seconds"}
    printed = plans.lines({"run": "a", "topology": "b", "chips": 8, "mesh": {"data": 2, "fsdp": 4},
                            "parameters": {"student": 1e6}, "programs": {"generator": described}})
    assert "does NOT fit, by 8.00 GiB per chip" in printed and "would help: generator.train.microbatches=2" in printed
    assert "peak 16.00 GiB, capacity 8.00 GiB" in printed and "largest batch per chip that fits: 1" in printed


def test_the_largest_batch_is_found(config, monkeypatch):
    planner = planner_of(config)
    for limit in (0, 1, 3, 37, 200):
        tried = []

        def compile_(_, name, batch, limit=limit, tried=tried):
            tried.append(batch // 8)
            short = int(batch // 8 > limit)
            return Program(peak_bytes_per_chip=0, capacity_bytes_per_chip=1, short_bytes_per_chip=short,
                           state_bytes_per_chip=0, collectives={}, seconds=0.0)

        monkeypatch.setattr(Planner, "_compile", compile_)
        found = planner._largest_batch("generator", 16, planner._compile("generator", 16))
        assert found <= limit and limit - found <= max(1, limit // 8) * (limit > 8)
        assert len(tried) < 16


@pytest.mark.parametrize(("changes", "topology", "message"), [
    ({}, "", "plan.topology is empty; give"),
    ({"plan.programs": ("train",)}, "gpu:a100:1x8", "plan.programs has train; choose from tokenizer"),
    ({"mesh.fsdp": 3}, "gpu:a100:1x8", "mesh.fsdp is 3, which 8 devices cannot fill"),
    ({"generator.train.batch_size": 4}, "gpu:a100:1x8", "generator.train.batch_size is 4, which 8 devices"),
])
def test_plans_that_cannot_be_are_refused(config, tmp_path, changes, topology, message):
    config.update_from_flattened_dict({"plan.topology": topology, **changes})
    with pytest.raises(ValueError, match=message):
        plan.run(config, str(tmp_path))
    assert not list(tmp_path.iterdir())
