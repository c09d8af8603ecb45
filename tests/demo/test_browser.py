"""The page in a real browser: Chromium without a window, driven by playwright."""

import io
import json
import re
import shutil
import socket

import numpy as np
import pytest
from PIL import Image

from refocus_jax.sampling.decode import SamplingSettings
from tests.fixtures import small

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'refocus_jax[demo]'")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from refocus_jax.demo import page as demo_page  # noqa: E402
from refocus_jax.demo import painting, parts  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"), pytest.mark.slow,
              pytest.mark.filterwarnings("default")]
PATIENCE = 90_000  # milliseconds; compiling takes most of it


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The address of a page, and the addresses that its server has connected to."""
    folder, port, asked = tmp_path_factory.mktemp("demo"), free_port(), []
    connect, resolve = socket.socket.connect, socket.getaddrinfo
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        patch.setattr(socket.socket, "connect", lambda self, to: (asked.append(to[0]), connect(self, to))[1])
        patch.setattr(socket, "getaddrinfo", lambda host, *a, **k: (asked.append(host), resolve(host, *a, **k))[1])
        demo = parts.Demo(generator=small.generator(), settings=SamplingSettings(top_k=0), sixteen_bit_max=0,
                              origin={"generator": "runs/small"}, folder=folder)
        page = demo_page.start(demo, port)
        yield f"http://127.0.0.1:{port}", asked
        page.close(verbose=False)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser, served):
    """Opens the page in a new tab; afterwards, no request has left the machine and the browser has no complaints."""
    address, asked = served
    contexts, requests, errors = [], [], []

    def open_tab(**options):
        context = browser.new_context(accept_downloads=True, **options)
        contexts.append(context)
        opened = context.new_page()
        opened.set_default_timeout(PATIENCE)
        opened.on("request", lambda request: requests.append(request.url))
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.on("console", lambda message: "Content Security" in message.text and errors.append(message.text))
        opened.goto(address)
        opened.wait_for_selector("#draw")
        return opened

    yield open_tab
    for context in contexts:
        context.close()
    assert requests and not [url for url in requests if not url.startswith((address, "data:", "blob:"))]
    assert not [host for host in asked if str(host) not in ("127.0.0.1", "localhost", "::1")]
    assert errors == []


def wait_for(opened, selector: str, text: str) -> None:
    opened.wait_for_function("([s, t]) => document.querySelector(s)?.innerText.includes(t)", arg=[selector, text])


def picture(opened, selector: str) -> np.ndarray:
    source = opened.get_attribute(f"{selector} img", "src")
    return opened.evaluate("s => fetch(s).then(r => r.blob()).then(b => b.arrayBuffer()).then("
                           "a => Array.from(new Uint8Array(a)))", source)


def draw(opened) -> None:
    opened.click("#draw")
    wait_for(opened, "#sample-said", "Drawing scale")
    wait_for(opened, "#sample-said", "Done.")


def upload(opened, tab_name: str, content: bytes, name: str = "a.png") -> None:
    opened.get_by_role("tab", name=tab_name.capitalize()).click()
    opened.set_input_files(f"#{tab_name}-upload input[type=file]",
                           {"name": name, "mimeType": "image/png", "buffer": content})


def stroke(opened, canvas) -> None:
    """Paints with the brush, from the upper left to the lower right of the middle."""
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    opened.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.4)
    opened.mouse.down()
    opened.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.6, steps=8)
    opened.mouse.up()


def an_image(side: int = 40) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)).save(file, format="PNG")
    return file.getvalue()


def test_sample_focus_pull_and_downloads(tab, tmp_path):
    opened = tab()
    draw(opened)
    assert opened.locator("#sample-tokens img").count() == len(small.GRIDS)
    sharp = picture(opened, "#sample-picture")
    opened.locator("#sample-pull input[type=range]").fill("1")
    opened.wait_for_function("before => document.querySelector('#sample-picture img').src != before",
                             arg=opened.get_attribute("#sample-picture img", "src"))
    assert picture(opened, "#sample-picture") != sharp
    found = {}
    for name in ("Picture", "GIF", "Settings"):
        with opened.expect_download() as download:
            opened.get_by_role("tabpanel").first.get_by_text(name, exact=True).click()
        found[name] = tmp_path / download.value.suggested_filename
        download.value.save_as(found[name])
    with Image.open(found["Picture"]) as image, Image.open(found["GIF"]) as animation:
        assert image.size == (small.IMAGE_SIZE, small.IMAGE_SIZE) and animation.n_frames == len(small.GRIDS)
    assert json.loads(found["Settings"].read_text())["made_with"] == {"generator": "runs/small"}


def test_brush_and_box(tab):
    opened = tab()
    upload(opened, "edit", an_image())
    canvas = opened.locator("#mask canvas").first
    canvas.wait_for()
    opened.wait_for_timeout(1000)  # the editor loads its picture
    opened.click("#edit")
    opened.get_by_text("Nothing is painted; paint").wait_for()
    for _ in range(10):  # on a slow machine, the editor may not be ready for the first stroke
        stroke(opened, canvas)
        opened.wait_for_timeout(1500)  # the editor sends what is painted
        opened.click("#edit")
        opened.wait_for_timeout(1500)
        if opened.inner_text("#edit-said"):
            break
    wait_for(opened, "#edit-said", "Done.")
    brushed = picture(opened, "#edit-picture")
    opened.get_by_label("box", exact=True).check()
    opened.locator("#box img").wait_for()
    canvas.wait_for(state="hidden")
    opened.click("#edit")
    wait_for(opened, "#edit-said", "Drawing scale")
    wait_for(opened, "#edit-said", "Done.")
    assert picture(opened, "#edit-picture") != brushed


def test_views_follow_their_controls(tab):
    opened = tab()
    upload(opened, "views", an_image())
    wait_for(opened, "#views", "Alias energy")
    assert opened.locator("#views img").count() == 3 * len(small.GRIDS)
    before = opened.inner_text("#views")
    opened.locator("#psf").get_by_label("none").check()
    opened.wait_for_function("before => document.querySelector('#views').innerText != before", arg=before)
    assert re.search(r"radius 0 px", opened.inner_text("#views"))


@pytest.mark.parametrize("tab_name", ["edit", "views"])
def test_what_is_no_image_is_answered_in_the_page(tab, tab_name):
    opened = tab()
    upload(opened, tab_name, b"no image")
    opened.get_by_text("The file cannot be read as an image").wait_for()
    assert "Traceback" not in opened.content()


def test_a_file_that_is_too_large_is_refused(tab):
    opened = tab()
    upload(opened, "views", b"\0" * (painting.MAX_UPLOAD_BYTES + 2**20))
    opened.get_by_text("exceed the maximum allowed size of 20").wait_for()


def test_two_tabs_at_once_keep_their_own_pictures(tab):
    first, second = tab(), tab()
    second.get_by_label("Seed").first.fill("5")
    second.keyboard.press("Tab")
    first.click("#draw")
    second.click("#draw")
    for opened in (first, second):
        wait_for(opened, "#sample-said", "Done.")
    ours, theirs = picture(first, "#sample-picture"), picture(second, "#sample-picture")
    assert ours != theirs
    first.locator("#sample-pull input[type=range]").fill("1")
    first.wait_for_timeout(1000)
    assert picture(second, "#sample-picture") == theirs


@pytest.mark.parametrize("width", [360, 1400])
def test_nothing_is_wider_than_the_page(tab, width):
    opened = tab(viewport={"width": width, "height": 800})
    draw(opened)
    upload(opened, "views", an_image())
    wait_for(opened, "#views", "Alias energy")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    outside = opened.evaluate("""width => [...document.querySelectorAll('img, button, label, figure, p')].filter(e => {
        const r = e.getBoundingClientRect(); return r.width && (r.right > width + 1 || r.left < -1)}).length""", width)
    assert outside == 0
