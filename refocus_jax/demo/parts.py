"""What several tabs of the page are made of: the model that they share, controls, and where results appear."""

import dataclasses
import functools
import inspect
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from refocus_jax.data import pictures
from refocus_jax.demo import cards, drawing, painting
from refocus_jax.pretrained.models import Generator
from refocus_jax.pretrained.scales import ScaleByScale, Stage
from refocus_jax.sampling.decode import SamplingSettings

# Jobs of all tabs of all browsers wait for each other; looking at what is there does not wait.
JOB: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
LOOK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_MIN_SIDE = 256  # of the pictures on the page, in pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo:
    """What the page shows.

    Attributes:
      generator: The generator that draws.
      settings: The first values of the controls.
      origin: A record of where the generator comes from.
      sixteen_bit_max: The value that is white in 16-bit uploads; 0 refuses them.
      folder: Where files to download are written.
    """

    generator: Generator
    settings: SamplingSettings
    origin: dict[str, Any]
    sixteen_bit_max: int
    folder: Path

    @functools.cached_property
    def steps(self) -> ScaleByScale:
        """The sampler, with the programs that it has compiled."""
        return ScaleByScale(generator=self.generator)

    @functools.cached_property
    def colours(self) -> np.ndarray:
        """The colours of the codes."""
        return drawing.code_colours(np.asarray(self.generator.quantizer_params["codebook"]["embedding"]))

    @property
    def size(self) -> int:
        """The side of images, in pixels."""
        return self.generator.tokenizer.model.optics.image_size

    def read(self, path: str) -> np.ndarray:
        """Reads an upload."""
        return painting.read(path, self.sixteen_bit_max)

    def files(self, picture_hwc: np.ndarray, frames: list[np.ndarray], settings: str) -> list[Any]:
        """Writes the files to download and returns the updates of their buttons."""
        folder, updates = Path(tempfile.mkdtemp(dir=self.folder)), []
        for name, content in {"picture.png": pictures.png(picture_hwc), "focus_pull.gif": pictures.gif(frames),
                              "settings.json": settings.encode()}.items():
            (folder / name).write_bytes(content)
            updates.append(gr.update(value=str(folder / name), interactive=True))
        return updates


def told(function: Callable) -> Callable:
    """Shows a ValueError, which is made for users, as a message in the page."""
    if inspect.isgeneratorfunction(function):
        @functools.wraps(function)
        def steps(*values: Any) -> Iterator[Any]:
            try:
                yield from function(*values)
            except ValueError as error:
                raise gr.Error(_sentence(error), print_exception=False) from error
        return steps

    @functools.wraps(function)
    def call(*values: Any) -> Any:
        try:
            return function(*values)
        except ValueError as error:
            raise gr.Error(_sentence(error), print_exception=False) from error
    return call


def _sentence(error: ValueError) -> str:
    text = str(error)
    return text[:1].upper() + text[1:] + "."


def sampling_controls(demo: Demo) -> list[Any]:
    """Makes the controls that `drawing.request` reads after the classes."""
    settings, vocab = demo.settings, demo.generator.network.vocab_size
    return [gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1),
            gr.Slider(0, 10, settings.cfg, step=0.1, label="Guidance",
                      info="0 is none. Higher values follow the class more closely."),
            gr.Slider(0, vocab, min(settings.top_k, vocab), step=1, label="Top-k",
                      info="Draws only from the k most likely codes; 0 draws from all."),
            gr.Slider(0, 1, settings.top_p, step=0.01, label="Top-p",
                      info="Draws only from the codes that make up this probability; 0 draws from all.")]


def classes_control(demo: Demo, **changes: Any) -> gr.Dropdown:
    """Makes a list of all classes, whose values are their numbers."""
    return gr.Dropdown([(name, number) for number, name in enumerate(demo.generator.class_names)], **changes)


class Result:
    """Where images appear, scale by scale: a line of text, the picture, the focus pull, tokens and downloads."""

    def __init__(self, demo: Demo, tab: str):
        self.demo, self.scales = demo, len(demo.generator.network.grid_sizes)
        self.said = gr.Markdown("", elem_id=f"{tab}-said")
        self.picture = gr.HTML(elem_id=f"{tab}-picture")
        self.pull = gr.Slider(1, self.scales, self.scales, step=0.05, interactive=False, elem_id=f"{tab}-pull",
                              label="Focus pull", info=f"From blur (1) to sharp ({self.scales}), by scale")
        with gr.Row():
            self.downloads = [gr.DownloadButton(name, interactive=False, size="sm", min_width=90)
                              for name in ("Picture", "GIF", "Settings")]
        self.tokens, self.frames = gr.HTML(elem_id=f"{tab}-tokens"), gr.State(([], ""))
        self.outputs = [self.said, self.picture, self.pull, self.tokens, self.frames, *self.downloads]
        self.pull.input(lambda drawn, at: large(drawing.pull(drawn[0], at), drawn[1]), [self.frames, self.pull],
                        self.picture, trigger_mode="always_last", **LOOK)

    def show(self, stages: Iterator[Stage], asked: drawing.Request, **more: Any) -> Iterator[dict]:
        """Yields the updates of all parts, after each scale."""
        names = [self.demo.generator.class_names[label] for label in asked.labels]
        caption = ", ".join(names)
        done: list[Stage] = []
        frames: list[np.ndarray] = []
        yield {self.said: self._doing(0), self.pull: gr.update(interactive=False)}
        for stage in stages:
            done.append(stage)
            frames.append(drawing.frame(stage.images, max(self.demo.size, _MIN_SIDE)))
            yield {self.said: self._doing(len(done)), self.picture: large(frames[-1], caption),
                   self.pull: len(done), self.tokens: drawing.token_cards(done, names, self.demo.colours)}
        settings = drawing.settings_json(asked, self.demo.generator.class_names, self.demo.origin, **more)
        files = self.demo.files(drawing.frame(done[-1].images, self.demo.size), frames, settings)
        yield {self.said: "Done.", self.frames: (frames, caption), **dict(zip(self.downloads, files, strict=True)),
               self.pull: gr.update(interactive=True, value=self.scales)}

    def _doing(self, done: int) -> str:
        grids = self.demo.generator.network.grid_sizes
        if done == self.scales:
            return "Writing the files to download."
        return (f"Drawing scale {done + 1} of {self.scales}, {grids[done]} × {grids[done]} tokens. What is drawn for "
                "the first time is compiled first, which can take a minute.")


def large(picture_hwc: np.ndarray, caption: str) -> str:
    """Returns a picture as HTML, up to 512 px wide."""
    return cards.row([cards.figure(picture_hwc, caption)], large=True)


def upload_control(tab: str) -> gr.File:
    """Makes the place for an upload, and says what may be uploaded."""
    gr.Markdown(f"Upload an image of at most {painting.MAX_UPLOAD_BYTES // 2**20} MiB and "
                f"{painting.MAX_PIXELS // 10**6} million pixels. Its middle square is used.")
    return gr.File(label="Image", type="filepath", height=140, elem_id=f"{tab}-upload")
