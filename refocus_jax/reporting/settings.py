"""Prints all settings in Markdown: `python -m refocus_jax.reporting.settings > docs/reference/settings.md`."""

from itertools import groupby

from refocus_jax.config.base import SETTINGS

_HEAD = """# Settings

Every setting is a flag, `--config.NAME=VALUE`, and an attribute of a config. This page is printed from the table in
`refocus_jax/config/base.py` by `python -m refocus_jax.reporting.settings`. `--mode=config` prints the settings of a run
with their current values.
"""


def markdown() -> str:
    """Makes a table per section, in the order in which the settings are declared."""
    parts = [_HEAD]
    for section, names in groupby(SETTINGS, key=lambda name: name.rpartition(".")[0]):
        parts.append(f"\n## {section or 'General'}\n\n| setting | default | may be | what it does |\n"
                     "| --- | --- | --- | --- |\n")
        for name in names:
            default, limits, line = SETTINGS[name]
            parts.append(f"| `{name}` | {_cell(f'`{default!r}`')} | {_cell(limits.says)} | {_cell(line)} |\n")
    return "".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


if __name__ == "__main__":
    print(markdown(), end="")
