"""The page without a browser: what is served, where, and how errors are told."""

import json
import re
import socket
import urllib.request

import pytest

from refocus_jax.sampling.decode import SamplingSettings
from tests.fixtures import small

gr = pytest.importorskip("gradio", reason="gradio is not installed: pip install 'refocus_jax[demo]'")
from refocus_jax.demo import page as demo_page  # noqa: E402
from refocus_jax.demo import painting, parts  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default", "ignore:unclosed event loop:ResourceWarning")  # gradio's


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return parts.Demo(generator=small.generator(), settings=SamplingSettings(), origin={}, sixteen_bit_max=0,
                          folder=tmp_path_factory.mktemp("demo"))


def test_it_is_served_on_this_machine_only_and_asks_for_nothing_elsewhere(demo):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        taken.listen()
        with pytest.raises(OSError, match=f"demo.port is {port}, which is in use or not allowed; give another"):
            demo_page.start(demo, port)
    page = demo_page.start(demo, port)
    try:
        assert page.local_url == f"http://127.0.0.1:{port}/" and page.share_url is None
        html = urllib.request.urlopen(page.local_url).read().decode()
        assert "Content-Security-Policy" in html
        loaded = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=[\"']?(https?:[^\"' >]*)", html)
        assert loaded == []
        config = json.loads(urllib.request.urlopen(f"{page.local_url}config").read())
        assert not config["analytics_enabled"] and config["max_file_size"] == painting.MAX_UPLOAD_BYTES
    finally:
        page.close(verbose=False)


def test_all_jobs_share_one_place_in_the_queue(demo):
    jobs = [function for function in demo_page.build(demo).fns.values() if function.queue]
    assert len(jobs) >= 5
    assert {(job.concurrency_id, job.concurrency_limit) for job in jobs} == {("model", 1)}


def test_errors_for_users_are_sentences_and_mistakes_stay_mistakes():
    def fail(error):
        raise error

    def fail_later(error):
        yield 1
        raise error

    with pytest.raises(gr.Error, match="The seed is empty."):
        parts.told(fail)(ValueError("the seed is empty"))
    with pytest.raises(gr.Error, match="The seed is empty."):
        list(parts.told(fail_later)(ValueError("the seed is empty")))
    with pytest.raises(TypeError):
        parts.told(fail)(TypeError())


def test_files_to_download(demo, images):
    updates = demo.files(images[0], [images[0], images[1]], "{}")
    assert [update["value"].rpartition("/")[2] for update in updates] == ["picture.png", "focus_pull.gif",
                                                                          "settings.json"]
    assert all(update["interactive"] for update in updates)
    assert demo.files(images[0], [images[0]], "{}")[0]["value"] != updates[0]["value"]
