"""Optional packages that are missing are named, with the extra that installs them."""

import importlib.util

import pytest

from refocus_jax.runtime import extras


def test_what_is_installed_is_not_complained_about():
    extras.require("--mode=sample", "test", {"numpy": "numpy", "PIL": "pillow"})


def test_only_missing_packages_are_named():
    expected = r"--mode=sample needs one-package and another; run pip install 'refocus_jax\[some\]'"
    with pytest.raises(ImportError, match=expected):
        extras.require("--mode=sample", "some", {"no_such_one": "one-package", "numpy": "numpy",
                                                 "no_such_two": "another"})


def test_packages_are_looked_for_and_not_imported(monkeypatch):
    """Importing tensorflow_datasets takes seconds."""
    looked_for = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: looked_for.append(name) or "found")
    extras.require("data.source", "tfds", {"no_such_module": "no-such-package"})
    assert looked_for == ["no_such_module"]
