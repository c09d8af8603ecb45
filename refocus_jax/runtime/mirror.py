"""Copies metrics and pictures of a training stage to Weights & Biases, which the extra `wandb` installs."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refocus_jax.runtime import extras


class Mirror:
    """One run of Weights & Biases. Its id follows from the directory, so a resumed stage goes on in the same run.

    The files of the workdir stay the record: a step that is trained again after a kill appears twice in the copy.

    Args:
      project: The project of Weights & Biases.
      directory: The directory of the stage; its own folder `wandb` holds what is not uploaded yet.
      config: All settings, shown with the run.

    Raises:
      ImportError: wandb is not installed.
      ValueError: It refuses to start, for example because nobody has logged in.
    """

    def __init__(self, project: str, directory: str, config: Mapping[str, Any]):
        extras.require(f"log.wandb={project}", "wandb", {"wandb": "wandb"})
        import wandb

        path = Path(directory).absolute()
        try:
            self._run = wandb.init(
                project=project, dir=directory, id=hashlib.blake2b(str(path).encode(), digest_size=8).hexdigest(),
                resume="allow", name=f"{path.parent.name}/{path.name}", group=path.parent.name, job_type=path.name,
                config=dict(config), settings=wandb.Settings(console="off", silent=True, disable_git=True))
        except wandb.Error as error:
            raise ValueError(f"log.wandb is {project!r}, and wandb does not start: {error}. Run `wandb login`, set the "
                             "variable WANDB_MODE=offline, or leave log.wandb out") from error
        self._image = wandb.Image
        self._run.define_metric("*", step_metric="step")  # its own steps may not go back, as those of a resumed run do

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Copies numbers by name."""
        self._run.log({"step": step, **values})

    def image(self, step: int, name: str, image_hwc: np.ndarray) -> None:
        """Copies a uint8 image."""
        self._run.log({"step": step, name: self._image(image_hwc)})

    def close(self) -> None:
        """Uploads the rest, unless wandb is offline."""
        self._run.finish()
