"""Notices to users about their data, logged once per process however often the data are opened."""

import functools
import logging


@functools.cache
def say(line: str) -> None:
    """Log a line as a warning, unless this process has already logged it."""
    logging.warning("%s", line)
