"""Fields of Flax modules, and of everything that is built from settings, are given by name."""

import dataclasses
import importlib
import inspect
import pkgutil

import flax.linen as nn
import pytest

import refocus_jax
from refocus_jax.config import base, build


def classes() -> list[type]:
    """All Flax modules of the package, and all dataclasses that `config/base.py` and `config/build.py` import."""
    names = [module.name for module in pkgutil.walk_packages(refocus_jax.__path__, "refocus_jax.")]
    found = {value for name in names if not name.endswith(".__main__")
             for value in vars(importlib.import_module(name)).values()
             if inspect.isclass(value) and issubclass(value, nn.Module) and value.__module__ == name}
    found |= {value for module in (base, build) for value in vars(module).values()
              if inspect.isclass(value) and dataclasses.is_dataclass(value)}
    return sorted(found, key=lambda found: (found.__module__, found.__qualname__))


def positional(found: type) -> list[str]:
    """Names the fields that can be given without their name."""
    return [parameter.name for parameter in inspect.signature(found).parameters.values()
            if parameter.kind is not parameter.KEYWORD_ONLY]


def test_classes_are_found():
    names = {found.__name__ for found in classes()}
    assert {"Transformer", "Vgg16", "Pyramid", "LoopSettings", "TokenizerTask"} <= names


@pytest.mark.parametrize("found", classes(), ids=lambda found: found.__name__)
def test_fields_are_given_by_name(found):
    """To correct it: `class X(nn.Module, kw_only=True)`, or `@dataclasses.dataclass(frozen=True, kw_only=True)`."""
    assert positional(found) == []


def test_a_field_without_its_name_is_found():
    class Network(nn.Module):
        width: int

    @dataclasses.dataclass(frozen=True)
    class Settings:
        weight: float = 1.0

    assert "width" in positional(Network) and positional(Settings) == ["weight"]
