"""A page of items: all text is escaped, and all pictures are embedded."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from refocus_jax.evaluation.tables import Chart, Line, Table
from refocus_jax.reporting import page
from refocus_jax.reporting.page import Drawing, Group, Missing, Section, Settings, Tabled, Words

EVIL = '<script>alert("x")</script>\'" onload="x'


def test_text_from_outside_is_escaped_wherever_it_stands(tmp_path):
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "picture.png")
    items = [page.picture(tmp_path / "picture.png", EVIL, EVIL), Missing(EVIL, EVIL), Words(EVIL, [EVIL]),
             Tabled(Table(EVIL, [EVIL, EVIL], [[EVIL, EVIL]], EVIL), [EVIL]), Settings(EVIL, {EVIL: {EVIL: EVIL}}),
             Drawing("chart", Chart(EVIL, EVIL, EVIL, [Line(EVIL, [1, 2], [1, 2])]), EVIL)]
    html = page.render(EVIL, [Section("section", EVIL, [Group("group", EVIL, items, EVIL)], EVIL)])
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: found.extend([tag, *(name for name, _ in attrs)])
    parser.feed(html)
    assert not {"script", "onload"} & set(found) and html.count("alert(") > 20


@pytest.mark.parametrize(("value", "text"), [
    (None, "–"), (3, "3"), (0.123456, "0.1235"), (1e-9, "1e-09"), (float("nan"), "not a number"), (float("inf"), "inf"),
    ("nan", "nan"), (True, "true"), ([1, 2], "[1, 2]")])
def test_cells(value, text):
    assert page.cell(value) == text


def test_numbers_are_aligned_and_words_are_not():
    table = Table("t", ["name", "number", "gap", "step", "word", "mixed"],
                  [["1", 1.5, None, "3 of 4", "a", 1], ["2", 2, 3, "4 of 4", "b", "one"]])
    assert Tabled(table).numeric == {1, 2, 3}


def pixels(picture):
    with Image.open(io.BytesIO(base64.b64decode(picture.source.partition("base64,")[2]))) as image:
        return image.format, np.asarray(image.convert("RGB"))


def test_pictures_are_kept_to_the_pixel_unless_they_are_large_and_need_not_be(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (1000, 900, 3), np.uint8)
    for name, image in (("small", noise[:100, :100]), ("large", noise)):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    for name, crisp, expected in (("small", False, noise[:100, :100]), ("large", True, noise)):
        form, found = pixels(page.picture(tmp_path / f"{name}.png", "alt", "", crisp))
        assert form == "PNG" and (found == expected).all()
    large = page.picture(tmp_path / "large.png", "alt", "run")
    form, found = pixels(large)
    assert form == "JPEG" and found.shape == noise.shape and abs(found.astype(int) - noise).mean() < 20
    assert large.caption == "run (a JPEG of large.png)" and len(large.source) < 2 * page._LARGEST
    small = page.picture(tmp_path / "small.png", "alt")
    assert small.shown_width == 200 and large.shown_width == 900  # small ones are enlarged
    assert [Group("id", "", [one]).wide for one in (small, large)] == [False, True]


def test_what_is_no_picture_is_said_to_be_missing(tmp_path):
    (tmp_path / "text.png").write_text("text")
    for name in ("text.png", "nothing.png"):
        assert name in page.picture(tmp_path / name, "alt").text
