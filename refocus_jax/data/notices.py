"""What people should know about their data: one line each, said once by a process however often the data are opened."""

import functools
import logging


@functools.cache
def say(line: str) -> None:
    """Logs a line as a warning, unless this process has said it already."""
    logging.warning("%s", line)
