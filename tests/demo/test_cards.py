"""HTML with pictures in it."""

import base64
import io
import re

import numpy as np
from PIL import Image

from refocus_jax.demo import cards


def test_a_figure_holds_its_picture():
    picture = np.random.default_rng(0).integers(0, 255, (3, 5, 3), np.uint8)
    html = cards.figure(picture, 'a "<b>"', pixels=True, more="<p>more</p>")
    assert "class=pixels" in html and html.count("a &quot;&lt;b&gt;&quot;") == 2 and "<p>more</p></figure>" in html
    content = base64.b64decode(re.search("base64,([^\"]*)", html)[1])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), picture)


def test_rows_and_sections():
    assert cards.row(["<i></i>", "<b></b>"], large=True) == '<div class="cards large"><i></i><b></b></div>'
    assert cards.section("a<", "", "c") == '<div class="said"><h4>a&lt;</h4>c</div>'
    assert "<p>b&lt;</p>" in cards.section("a", "b<", "c")
