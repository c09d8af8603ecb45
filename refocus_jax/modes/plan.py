"""`--mode=plan`: estimates memory and time of a config on a machine that need not be present."""

import functools
import os

import jax
from ml_collections import ConfigDict

from refocus_jax.config import build, check
from refocus_jax.planning.planner import PROGRAMS, Planner
from refocus_jax.planning.targets import cudnn_taken_for_granted, load
from refocus_jax.reporting import plans
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime.files import write_json


def run(c: ConfigDict, workdir: str) -> None:
    """Compiles `plan.programs` for the machine of `plan.topology`, prints what they need, and writes plan.json.

    Raises:
      ValueError: A setting is out of range, or the topology is unknown.
      ImportError: A compiler is missing.
    """
    if not c.plan.topology:
        raise ValueError("plan.topology is empty; give the machine to plan for, such as tpu:v5e:4x4 or gpu:a100:1x8")
    if unknown := set(c.plan.programs) - set(PROGRAMS):
        raise ValueError(f"plan.programs has {', '.join(sorted(unknown))}; choose from {', '.join(PROGRAMS)}")
    # No device is needed, and JAX's plug-ins for the planned devices must not look for any.
    jax.config.update("jax_platforms", "cpu")
    target = load(c.plan.topology)
    mesh = mesh_lib.make_mesh(target.devices, **c.mesh)
    check.check(c, mesh.size)
    planner = Planner(make=functools.partial(build.programs, c, target.platform), target=target, mesh=mesh)
    # Programs for devices that are not present cannot be read back from the compilation cache.
    settings = {"jax_optimization_level": c.plan.optimization, "jax_enable_compilation_cache": False}
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        with cudnn_taken_for_granted():
            described = {name: planner.describe(name, c.plan.utilization, c.plan.search_batch)
                         for name in c.plan.programs}
            content = {"run": os.path.basename(os.path.normpath(workdir)), "topology": c.plan.topology,
                       "chips": mesh.size, "mesh": dict(mesh.shape), **planner.sizes(), "programs": described}
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    write_json(os.path.join(workdir, "plan.json"), content)
    print(plans.lines(content))
