"""The page itself: gradio's controls, and which function each of them calls. Nothing here computes a picture."""

import dataclasses
import functools
import inspect
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from refocus_jax.data import masks
from refocus_jax.demo import cards, drawing, looking, painting
from refocus_jax.focus.psf import PSFS
from refocus_jax.pretrained.models import Generator
from refocus_jax.pretrained.scales import ScaleByScale, Stage
from refocus_jax.sampling.decode import SamplingSettings

ADDRESS = "127.0.0.1"  # only this machine
# The browser itself refuses every request to another machine.
_HEAD = ('<meta http-equiv="Content-Security-Policy" content="default-src \'self\' data: blob: \'unsafe-inline\' '
         "'unsafe-eval'\">")
# Jobs of all tabs of all browsers wait for each other; looking at what is there does not wait.
_JOB: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
_LOOK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
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
        for name, content in {"picture.png": cards.png(picture_hwc), "focus_pull.gif": drawing.gif(frames),
                              "settings.json": settings.encode()}.items():
            (folder / name).write_bytes(content)
            updates.append(gr.update(value=str(folder / name), interactive=True))
        return updates


def _told(function: Callable) -> Callable:
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


def _sampling_controls(demo: Demo) -> list[Any]:
    settings, vocab = demo.settings, demo.generator.network.vocab_size
    return [gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1),
            gr.Slider(0, 10, settings.cfg, step=0.1, label="Guidance",
                      info="0 is none. Higher values follow the class more closely."),
            gr.Slider(0, vocab, min(settings.top_k, vocab), step=1, label="Top-k",
                      info="Draws only from the k most likely codes; 0 draws from all."),
            gr.Slider(0, 1, settings.top_p, step=0.01, label="Top-p",
                      info="Draws only from the codes that make up this probability; 0 draws from all.")]


def _classes(demo: Demo, **changes: Any) -> gr.Dropdown:
    return gr.Dropdown([(name, number) for number, name in enumerate(demo.generator.class_names)], **changes)


class _Result:
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
        self.tokens, self.frames = gr.HTML(elem_id=f"{tab}-tokens"), gr.State([])
        self.outputs = [self.said, self.picture, self.pull, self.tokens, self.frames, *self.downloads]
        self.pull.input(lambda frames, at: _large(drawing.pull(frames, at)), [self.frames, self.pull], self.picture,
                        trigger_mode="always_last", **_LOOK)

    def show(self, stages: Iterator[Stage], asked: drawing.Request, **more: Any) -> Iterator[dict]:
        """Yields the updates of all parts, after each scale."""
        names = [self.demo.generator.class_names[label] for label in asked.labels]
        done: list[Stage] = []
        frames: list[np.ndarray] = []
        yield {self.said: self._doing(0), self.pull: gr.update(interactive=False)}
        for stage in stages:
            done.append(stage)
            frames.append(drawing.frame(stage.images, max(self.demo.size, _MIN_SIDE)))
            yield {self.said: self._doing(len(done)), self.picture: _large(frames[-1]), self.pull: len(done),
                   self.tokens: drawing.token_cards(done, names, self.demo.colours)}
        settings = drawing.settings_json(asked, self.demo.generator.class_names, self.demo.origin, **more)
        files = self.demo.files(drawing.frame(done[-1].images, self.demo.size), frames, settings)
        yield {self.said: "Done.", self.frames: frames, self.pull: gr.update(interactive=True, value=self.scales),
               **dict(zip(self.downloads, files, strict=True))}

    def _doing(self, done: int) -> str:
        grids = self.demo.generator.network.grid_sizes
        if done == self.scales:
            return "Writing the files to download."
        return (f"Drawing scale {done + 1} of {self.scales}, {grids[done]} × {grids[done]} tokens. What is drawn for "
                "the first time is compiled first, which can take a minute.")


def _large(picture_hwc: np.ndarray) -> str:
    return cards.row([cards.figure(picture_hwc, "")], large=True)


def _sample_tab(demo: Demo) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            classes = _classes(demo, multiselect=True, max_choices=drawing.MAX_IMAGES, value=[0], label="Classes",
                               info=f"An image of each, up to {drawing.MAX_IMAGES}", elem_id="classes")
            dials = _sampling_controls(demo)
            start = gr.Button("Draw", variant="primary", elem_id="draw")
        with gr.Column(scale=2, min_width=280):
            result = _Result(demo, "sample")

    @_told
    def draw(*values: Any) -> Iterator[dict]:
        asked = drawing.request(*values)
        yield from result.show(demo.steps.sample(asked.labels, asked.seed, asked.settings), asked)

    start.click(draw, [classes, *dials], result.outputs, show_progress="hidden", **_JOB)


def _edit_tab(demo: Demo) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            upload, picture = _upload("edit"), gr.State(None)
            kind = gr.Radio(["brush", "box"], value="brush", label="Mask", info="The part that is painted anew")
            editor = gr.ImageEditor(
                label="Paint the part to draw anew", type="numpy", sources=(), transforms=(), elem_id="mask",
                brush=gr.Brush(default_size=48, colors=["#ff2d87"], color_mode="fixed"), height=420,
                layers=False, canvas_size=(painting.CANVAS, painting.CANVAS), visible=False)
            with gr.Column(visible=False) as box:
                preview = gr.HTML(elem_id="box")
                edges = [gr.Slider(0, 100, value, step=1, label=f"{name} edge, %")
                         for name, value in (("Left", 25), ("Right", 75), ("Top", 25), ("Bottom", 75))]
            label = _classes(demo, value=0, label="Class")
            dials = _sampling_controls(demo)
            start = gr.Button("Edit", variant="primary", elem_id="edit")
        with gr.Column(scale=2, min_width=280):
            before, result = gr.HTML(), _Result(demo, "edit")

    def preview_of(read: np.ndarray | None, *at: float) -> str:
        if read is None:
            return ""
        return cards.row([cards.figure(painting.known(painting.canvas(read), painting.box_mask(*at)),
                                       "Grey is painted anew")], large=True)

    def choose(read: np.ndarray | None, name: str) -> list[Any]:
        return [gr.update(visible=read is not None and name == "brush"), gr.update(visible=name == "box")]

    @_told
    def take(path: str | None, name: str, *at: float) -> list[Any]:
        read = None if path is None else demo.read(path)
        brush, boxed = choose(read, name)
        return [read, brush | {"value": None if read is None else painting.canvas(read)}, boxed, preview_of(read, *at)]

    @_told
    def edit(read: np.ndarray | None, name: str, painted: dict | None, *values: Any) -> Iterator[dict]:
        if read is None:
            raise ValueError("there is no image; upload one")
        at, asked = values[:4], drawing.request(*values[4:])
        mask = painting.box_mask(*at) if name == "box" else painting.brush_mask((painted or {}).get("layers", []))
        image, hidden = masks.hide_square(read, mask, demo.size)
        yield {before: cards.row([cards.figure(painting.known(image, hidden), "What is known")])}
        stages = demo.steps.edit(image[None], hidden[None], asked.labels, asked.seed, asked.settings)
        yield from result.show(stages, asked, mask=name, painted_share=round(float(hidden.mean()), 4))

    upload.change(take, [upload, kind, *edges], [picture, editor, box, preview], **_JOB)
    kind.change(choose, [picture, kind], [editor, box], **_LOOK)
    for edge in edges:
        edge.input(_told(preview_of), [picture, *edges], preview, trigger_mode="always_last", **_LOOK)
    start.click(edit, [picture, kind, editor, *edges, label, *dials], [before, *result.outputs],
                show_progress="hidden", **_JOB)


def _upload(tab: str) -> gr.File:
    return gr.File(label=f"Image, at most {painting.MAX_UPLOAD_BYTES // 2**20} MiB and "
                         f"{painting.MAX_PIXELS // 10**6} million pixels", type="filepath", height=140,
                   elem_id=f"{tab}-upload")


def _views_tab(demo: Demo) -> None:
    optics, picture = demo.generator.tokenizer.model.optics, gr.State(None)
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            upload = _upload("views")
            psf = gr.Radio(PSFS, value=optics.psf, label="PSF", info="The shape of the blur", elem_id="psf")
            schedule = gr.Radio(looking.SCHEDULES, value=optics.schedule, label="Schedule",
                                info="How the radius falls from the first scale to the last")
            radius = gr.Slider(0.1, demo.size / 4, min(optics.rho_max, demo.size / 4), step=0.1, elem_id="radius",
                               label="Radius, pixels", info="Of the coarsest scale; only for cosine")
        with gr.Column(scale=2, min_width=280):
            shown = gr.HTML("<p>Upload an image to see its views.</p>", elem_id="views")

    @_told
    def look(read: np.ndarray | None, *values: Any) -> str:
        if read is None:
            return ""
        return looking.view_cards(looking.look(read, looking.pyramid(optics, *values)))

    @_told
    def take(path: str | None, *values: Any) -> list[Any]:
        read = None if path is None else demo.read(path)
        return [read, look(read, *values)]

    upload.change(take, [upload, psf, schedule, radius], [picture, shown], **_JOB)
    for changed in (psf.input, schedule.input, radius.release):
        changed(look, [picture, psf, schedule, radius], shown, trigger_mode="always_last", **_JOB)


def build(demo: Demo) -> gr.Blocks:
    """Makes the page."""
    with gr.Blocks(title="refocus_jax", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown("# ReFocus-VAR\nImages are drawn by next-focus prediction: from blur to sharp.")
        for name, tab in (("Sample", _sample_tab), ("Edit", _edit_tab), ("Views", _views_tab)):
            with gr.Tab(name):
                tab(demo)
    return page.queue(max_size=16)


def _theme() -> gr.themes.Base:
    """Makes the theme: fonts that need no download, and text with enough contrast in light and in dark."""
    theme = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return theme.set(block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300",
                     button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700",
                     button_primary_background_fill_dark="*primary_600",
                     button_primary_background_fill_hover_dark="*primary_700")


def start(demo: Demo, port: int) -> gr.Blocks:
    """Serves the page on this machine only, and returns while it is served; `close` ends it.

    Raises:
      OSError: The port is in use.
    """
    page = build(demo)
    page.launch(server_name=ADDRESS, server_port=port, share=False, prevent_thread_lock=True, quiet=True,
                inbrowser=False, footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False, pwa=False,
                mcp_server=False, max_file_size=painting.MAX_UPLOAD_BYTES, theme=_theme(),
                css=cards.STYLE, head=_HEAD)
    return page


def serve(demo: Demo, port: int) -> None:
    """Serves the page until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    page = start(demo, port)
    print(f"The page is at http://{ADDRESS}:{port}. Ctrl-C ends it.", flush=True)
    try:
        threading.Event().wait()
    finally:
        page.close(verbose=False)
