"""The page itself: gradio's controls, and which function each of them calls. Nothing here computes a picture."""

import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import gradio as gr
import numpy as np

from refocus_jax.data import masks, pictures
from refocus_jax.demo import cards, drawing, looking, painting, parts
from refocus_jax.focus.psf import PSFS

ADDRESS = "127.0.0.1"  # only this machine
# The browser itself refuses every request to another machine.
_HEAD = ('<meta http-equiv="Content-Security-Policy" content="default-src \'self\' data: blob: \'unsafe-inline\' '
         "'unsafe-eval'\">")


def _sample_tab(demo: parts.Demo) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            classes = parts.classes_control(
                demo, multiselect=True, max_choices=drawing.MAX_IMAGES, value=[0], label="Classes", elem_id="classes",
                info=f"An image of each, up to {drawing.MAX_IMAGES}")
            dials = parts.sampling_controls(demo)
            start = gr.Button("Draw", variant="primary", elem_id="draw")
        with gr.Column(scale=2, min_width=280):
            result = parts.Result(demo, "sample")

    @parts.told
    def draw(*values: Any) -> Iterator[dict]:
        asked = drawing.request(*values)
        yield from result.show(demo.steps.sample(asked.labels, asked.seed, asked.settings), asked)

    start.click(draw, [classes, *dials], result.outputs, show_progress="hidden", **parts.JOB)


def _edit_tab(demo: parts.Demo) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            upload, picture = parts.upload_control("edit"), gr.State(None)
            kind = gr.Radio(["brush", "box"], value="brush", label="Mask",
                            info="The part to draw anew: paint over it, or put a box around it")
            with gr.Column() as brush:
                editor = gr.ImageEditor(
                    show_label=False, type="numpy", sources=(), transforms=(), layers=False, height=420, visible=False,
                    brush=gr.Brush(default_size=48, colors=["#ff2d87"], color_mode="fixed"), elem_id="mask",
                    canvas_size=(painting.CANVAS, painting.CANVAS))
            with gr.Column(visible=False) as box:
                preview = gr.HTML(elem_id="box")
                edges = [gr.Slider(0, 100, value, step=1, label=f"{name} edge, %")
                         for name, value in (("Left", 25), ("Right", 75), ("Top", 25), ("Bottom", 75))]
            label = parts.classes_control(demo, value=0, label="Class")
            dials = parts.sampling_controls(demo)
            start = gr.Button("Edit", variant="primary", elem_id="edit")
        with gr.Column(scale=2, min_width=280):
            before, result = gr.HTML(), parts.Result(demo, "edit")

    def preview_of(read: np.ndarray | None, *at: float) -> str:
        if read is None:
            return ""
        return parts.large(painting.known(painting.canvas(read), painting.box_mask(*at)), "Grey is drawn anew")

    @parts.told
    def take(path: str | None, *at: float) -> list[Any]:
        read = None if path is None else demo.read(path)
        value = None if read is None else painting.canvas(read)
        return [read, gr.update(value=value, visible=read is not None), preview_of(read, *at)]

    @parts.told
    def edit(read: np.ndarray | None, name: str, painted: dict | None, *values: Any) -> Iterator[dict]:
        if read is None:
            raise ValueError("there is no image; upload one")
        at, asked = values[:4], drawing.request(*values[4:])
        mask = painting.box_mask(*at) if name == "box" else painting.brush_mask((painted or {}).get("layers", []))
        image, hidden = masks.hide_square(read, mask, demo.size)
        yield {before: cards.row([cards.figure(painting.known(pictures.to_uint8(image), hidden), "What is known")])}
        stages = demo.steps.edit(image[None], hidden[None], asked.labels, asked.seed, asked.settings)
        yield from result.show(stages, asked, mask=name, painted_share=round(float(hidden.mean()), 4))

    upload.change(take, [upload, *edges], [picture, editor, preview], **parts.JOB)
    kind.change(lambda name: [gr.update(visible=name == "brush"), gr.update(visible=name == "box")], kind, [brush, box],
                **parts.LOOK)
    for edge in edges:
        edge.input(parts.told(preview_of), [picture, *edges], preview, trigger_mode="always_last", **parts.LOOK)
    start.click(edit, [picture, kind, editor, *edges, label, *dials], [before, *result.outputs],
                show_progress="hidden", **parts.JOB)


def _views_tab(demo: parts.Demo) -> None:
    optics, picture = demo.generator.tokenizer.model.optics, gr.State(None)
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            upload = parts.upload_control("views")
            psf = gr.Radio(PSFS, value=optics.psf, label="PSF", info="The shape of the blur", elem_id="psf")
            schedule = gr.Radio(looking.SCHEDULES, value=optics.schedule, label="Schedule",
                                info="How the radius falls from the first scale to the last")
            radius = gr.Slider(0.1, demo.size / 4, min(optics.rho_max, demo.size / 4), step=0.1, elem_id="radius",
                               label="Radius, pixels", info="Of the coarsest scale; only for cosine")
        with gr.Column(scale=2, min_width=280):
            shown = gr.HTML("<p>Upload an image to see its views.</p>", elem_id="views")

    @parts.told
    def look(read: np.ndarray | None, *values: Any) -> str:
        if read is None:
            return ""
        return looking.view_cards(looking.look(read, looking.pyramid(optics, *values)))

    @parts.told
    def take(path: str | None, *values: Any) -> list[Any]:
        read = None if path is None else demo.read(path)
        return [read, look(read, *values)]

    upload.change(take, [upload, psf, schedule, radius], [picture, shown], **parts.JOB)
    for changed in (psf.input, schedule.input, radius.release):
        changed(look, [picture, psf, schedule, radius], shown, trigger_mode="always_last", **parts.JOB)


def build(demo: parts.Demo) -> gr.Blocks:
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


def start(demo: parts.Demo, port: int) -> gr.Blocks:
    """Serves the page on this machine only, and returns while it is served; `close` ends it.

    Raises:
      OSError: The port is in use, or not allowed.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a page that has just ended is no obstacle
        try:
            probe.bind((ADDRESS, port))
        except OSError as error:
            raise OSError(f"demo.port is {port}, which is in use or not allowed; give another") from error
    page = build(demo)
    page.launch(server_name=ADDRESS, server_port=port, share=False, prevent_thread_lock=True, quiet=True,
                inbrowser=False, footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False, pwa=False,
                mcp_server=False, max_file_size=painting.MAX_UPLOAD_BYTES, theme=_theme(), css=cards.STYLE, head=_HEAD)
    return page


def serve(demo: parts.Demo, port: int) -> None:
    """Serves the page until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    page = start(demo, port)
    print(f"The page is at http://{ADDRESS}:{port}. Ctrl-C ends it.", flush=True)
    try:
        threading.Event().wait()
    finally:
        page.close(verbose=False)
