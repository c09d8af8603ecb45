"""`--mode=demo`: serves a page on this machine, to draw, edit and look at images in a browser."""

import os
import tempfile
from pathlib import Path

from ml_collections import ConfigDict

from refocus_jax.config import build
from refocus_jax.pretrained.choice import choose_generator
from refocus_jax.runtime import extras, processes


def run(c: ConfigDict, workdir: str) -> None:
    """Serves the page on 127.0.0.1 at `demo.port` until Ctrl-C. Uploads and results are deleted at the end.

    Raises:
      ValueError: `sampling.smooth` is True, or there are several processes.
      OSError: The port is in use.
      ImportError: The extra `demo` is not installed.
    """
    processes.check_alone("demo")
    extras.require("--mode=demo", "demo", {"gradio": "gradio"})
    settings = build.sampling_settings(c)
    if settings.smooth:
        raise ValueError("sampling.smooth is True, which the page does not support; set it to False")
    generator, origin = choose_generator(c, workdir)
    with tempfile.TemporaryDirectory(prefix="refocus_jax_demo_") as folder:
        # gradio reads them when it is imported: it counts its users, and keeps uploads forever.
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=folder)
        from refocus_jax.demo import page, parts

        page.serve(parts.Demo(generator=generator, settings=settings, origin=origin,
                              sixteen_bit_max=c.data.sixteen_bit_max, folder=Path(folder)), c.demo.port)
