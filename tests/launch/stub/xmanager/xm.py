"""Packaging: the calls as plain objects."""

from collections import namedtuple

Packageable = namedtuple("Packageable", "kind executor_spec settings")
Job = namedtuple("Job", "executable executor")
ModuleName = namedtuple("ModuleName", "module_name")
Executor = object


def JobRequirements(**resources):  # noqa: N802
    return resources


def binary(executor_spec, path, dependencies=(), *, args=None, env_vars=None):
    return Packageable("binary", executor_spec, {"path": path, "args": args, "env_vars": env_vars or {}})


def python_container(executor_spec, entrypoint, path=".", base_image=None, docker_instructions=None,
                     use_deep_module=False, *, args=None, env_vars=None):
    return Packageable("python_container", executor_spec, {
        "path": path, "base_image": base_image, "docker_instructions": docker_instructions,
        "module": entrypoint.module_name, "args": args, "env_vars": env_vars or {}})
