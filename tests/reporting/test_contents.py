"""The report's page."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from refocus_jax.reporting import contents, curves, health, runs
from tests.fixtures import workdirs


class Parsed(HTMLParser):
    """Parses a page as a browser does, as far as these tests need it."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.charts, self.text, self._title, self._broken = [], [], [], False, False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self._title = tag == "title" and self.tags[-1][0] == "svg"
        self.tags.append((tag, dict(attrs)))
        self._broken = tag == "wbr"

    def handle_data(self, data):
        if self._broken:
            data, self._broken = self.text.pop() + data, False
        self.text.append(data)
        if self._title:
            self.charts.append(data)
            self._title = False

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def check_page(html: str) -> Parsed:
    """Checks what is true of every report: it is self-contained, runs no scripts, and is valid."""
    parsed = Parsed(html)
    policy, = [meta["content"] for meta in parsed.all("meta") if "http-equiv" in meta]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert not {"script", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in parsed.tags}
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    for _, attrs in parsed.tags:
        for name, value in attrs.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "srcset", "action", "poster", "data"):
                assert value.startswith("data:") or (value[0] == "#" and value[1:] in ids), (name, value)
    for target in re.findall(r"url\(([^)]*)\)|@import", html):
        assert target[0] == "#" and target[1:] in ids
    for image in parsed.all("img"):
        with Image.open(io.BytesIO(base64.b64decode(image["src"].partition(";base64,")[2], validate=True))) as picture:
            picture.load()
        assert image["alt"]
    assert {"viewport", "color-scheme"} <= {meta.get("name") for meta in parsed.all("meta")}
    assert "@media (prefers-color-scheme: dark)" in html and len(parsed.all("h1")) == 1
    return parsed


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    folder = tmp_path_factory.mktemp("complete")
    return {f"seed_{seed}": runs.read(workdirs.complete(folder / f"seed_{seed}", seed, **{
        "generator.train.label_dropout": 0.1 + 0.1 * seed}))
            for seed in range(2)}


def test_every_picture_and_chart_of_a_run_is_on_its_page(complete):
    html = contents.html({"mine": complete["seed_0"]}, {})
    parsed = check_page(html)
    alts = [image["alt"] for image in parsed.all("img")]
    assert alts == [shown.alt for shown in contents._SHOWN] + ["Zone plate <b>"]
    charts = [drawing.chart.title for find in (curves.drawings, curves.speeds)
              for drawing in find({"mine": complete["seed_0"]})]
    assert len(charts) >= 15 and sorted(parsed.charts) == sorted([*charts, "Spectrum & folding"])
    headings = ["In short", "Pictures", "The numbers that matter", "Curves",
                "Metrics", "Aliasing and spectra", "Time and memory", "Configuration"]
    positions = [html.index(f"<h2>{heading}</h2>") for heading in headings]
    assert positions == sorted(positions)
    assert [a["href"] for a in parsed.all("a")] == [f"#{section['id']}" for section in parsed.all("section")]
    for words in ("fd_efflite0 As FID", "120.2", "448 samples of 3 classes are few.", "Energy that aliases", "12.5",
                  "In percent of <all> energy.", "structure_perplexity", "latent_channels 16", "55 min"):
        assert words in parsed.words, words
    assert "not there yet" not in parsed.words and [image.get("class") for image in parsed.all("img")[:5]] == [
        None, None, None, "crisp", None]
    assert "Trained until 2" in parsed.words and "What mine has learned" in parsed.words


def test_several_runs_stand_beside_each_other_and_what_differs_is_named(complete):
    parsed = check_page(contents.html(complete, {}))
    assert len(parsed.all("img")) == 2 * (len(contents._SHOWN) + 1)
    assert "Settings that differ seed_0 seed_1 generator.train.label_dropout 0.1 0.2 seed 0 1" in parsed.words
    assert parsed.charts.count("Loss of stage 1") == 1 and parsed.charts.count("Accuracy per scale") == 3


@pytest.mark.parametrize(("stages", "until", "missing"), [
    ((), 1.0, ("tokenizer: not trained yet", "generator: not trained yet", "Focus pyramid: not there yet")),
    (("tokenizer",), 0.2, ("generator: not trained yet. python -m refocus_jax.main --config=CONFIG",
                           "No evaluation yet: the first comes at step 800")),
    (("tokenizer", "generator"), 1.0, ("Samples on demand: not there yet", "Aliasing: not measured yet",
                                       "--mode=evaluate", "during_training")),
])
def test_what_is_missing_is_named_with_its_command(tmp_path, stages, until, missing):
    run = runs.read(workdirs.write(tmp_path, stages=stages, until=until))
    parsed = check_page(contents.html({"mine": run}, {}))
    assert all(words in parsed.words for words in missing)
    assert bool(parsed.charts) == bool(stages) and not parsed.all("img")


def test_a_verdict_stands_on_the_page_and_its_reference_in_the_charts(complete, tmp_path):
    reference = health.make([runs.read(workdirs.write(tmp_path / str(seed), seed)) for seed in range(3)],
                            {"machine": "a desk"})
    ill = runs.read(workdirs.write(tmp_path / "ill", 4, changed={"latent_rms": lambda t, v: 9 * v}))
    parsed = check_page(contents.html({"ill": ill, "other": complete["seed_0"]}, {
        "ill": health.compare(reference, ill), "other": "Not compared: <reasons>"}))
    assert "Is ill healthy? Not healthy: " in parsed.words and "latent_rms (size of the latents): above" in parsed.words
    assert "Is other healthy? Not compared: <reasons>" in parsed.words
    assert "reference's runs (a desk)" in parsed.words and "reference" in parsed.text
