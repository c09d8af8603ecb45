"""The settings reference, and the table that it is printed from."""

from pathlib import Path

import pytest

from refocus_jax.config.base import SETTINGS, get_config
from refocus_jax.reporting import settings

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"


def test_the_reference_is_that_of_the_settings():
    """To print it again: python -m refocus_jax.reporting.settings > docs/reference/settings.md"""
    assert PAGE.read_text(encoding="utf-8") == settings.markdown()


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_a_line_a_range_and_a_default_within_it(name):
    setting = SETTINGS[name]
    assert len(setting.line.split()) >= 2 and setting.line.endswith(".")
    assert setting.range.says and setting.range.fits(setting.default)
    assert f"| `{name}` |" in settings.markdown()


def test_defaults_are_those_of_a_config():
    assert get_config().generator.train.steps == SETTINGS["generator.train.steps"].default == 400_000
