"""The web app over real HTTP on loopback: the predictor's own results, and clear refusals."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image

from hmsa import Predictor

pytest.importorskip("fastapi", reason='needs pip install "hmsa[app]"')
uvicorn = pytest.importorskip("uvicorn", reason='needs pip install "hmsa[app]"')

from fastapi.responses import HTMLResponse  # noqa: E402

from hmsa.inference.app import Limits, Service, make_app, serve  # noqa: E402
from hmsa.runs import InputError  # noqa: E402

LIMITS = Limits(megabytes=1, megapixels=0.1, seconds=300, queue=4)


def run(app):
    """A server on a free port, in a thread: its address, and what stops it."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()

    def stop():
        server.should_exit = True
        thread.join()

    return f"http://127.0.0.1:{listening.getsockname()[1]}", stop


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor.load(trained)


@pytest.fixture(scope="module")
def url(predictor):
    address, stop = run(make_app({"mine": predictor}, LIMITS))
    yield address
    stop()


def ask(url: str, content: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, content, headers)) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    Image.fromarray(image).save(stream := io.BytesIO(), kind)
    return stream.getvalue()


IMAGE = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)


def test_an_answer_is_the_predictors_own(url, trained):
    query = urlencode({"want": ["label", "overlay", "view"], "scales": "0.5,1,2"}, doseq=True)
    status, body = ask(f"{url}/predict?{query}", encoded(IMAGE))
    assert status == 200
    answer, made = json.loads(body), Predictor.load(trained, (0.5, 1, 2))(IMAGE, detail=True)
    with Image.open(io.BytesIO(base64.b64decode(answer["label"]))) as label:
        assert (np.asarray(label) == made.label).all()
    with Image.open(io.BytesIO(base64.b64decode(answer["overlay"]))) as overlay:
        assert overlay.size == (80, 48)
    assert [answer["width"], answer["height"], answer["network"]] == [80, 48, "mine"]
    assert answer["confidence"] == pytest.approx(made.confidence8.mean() / 255)
    assert list(answer["classes"].values()) == [
        (made.label == k).mean() for k in range(len(answer["classes"]))
    ]
    assert '"scales": ["0.5×", "1×", "2×"]'.replace("×", "\\u00d7") in answer["view"]
    answer = json.loads(ask(f"{url}/predict", encoded(IMAGE, "WEBP"))[1])
    assert answer["label"]
    assert answer["view"] is answer["overlay"] is None


def test_refusals(url):
    png = encoded(IMAGE)
    noise = np.random.default_rng(0).integers(0, 256, (400, 900, 3), np.uint8)
    for query, content, status, says in (
        ("", b"no image", 415, "no PNG, JPEG or WebP"),
        ("", b"", 415, "no PNG, JPEG or WebP"),
        ("", encoded(IMAGE, "GIF"), 415, "no PNG, JPEG or WebP"),
        ("", png[: len(png) // 2], 422, "cannot be decoded"),
        ("", encoded(noise), 413, "more than 1 MB"),
        ("", encoded(np.zeros((400, 900, 3), np.uint8)), 413, "more than 0.1 megapixels"),
        ("?scales=one", png, 422, "is not a list of positive numbers"),
        ("?scales=99", png, 422, "up to 10"),
        ("?scales=0.1,0.2,0.3,0.4,0.5,0.6", png, 422, "at most 5"),
        ("?budget=2", png, 422, "less than or equal to 1"),
        ("?tile=small", png, 422, "is not auto"),
        ("?network=other", png, 422, "no network 'other'"),
        ("?want=all", png, 422, "Input should be 'label', 'overlay' or 'view'"),
    ):
        got, body = ask(f"{url}/predict{query}", content)
        assert got == status, (query, body)
        assert says in body.decode()
    assert ask(f"{url}/", Host="elsewhere.example")[0] == 400
    assert ask(f"{url}/predict")[0] == 405


def test_the_page_and_the_schema(url):
    page = ask(url)[1].decode()
    assert "default-src 'none'" in page
    assert "https://" not in page
    schema = json.loads(ask(f"{url}/openapi.json")[1])
    predict = schema["paths"]["/predict"]["post"]
    assert set(predict["requestBody"]["content"]) == {"image/png", "image/jpeg", "image/webp"}
    assert {"200", "413", "415", "422", "503", "504"} <= set(predict["responses"])
    assert "label" in schema["components"]["schemas"]["Answer"]["properties"]
    assert "at most 1 MB and 0.1 megapixels" in page


class Waiting:
    """A predictor that waits until it is told to go on."""

    def __init__(self, predictor):
        self.predictor, self.begun, self.go = predictor, threading.Semaphore(0), threading.Event()

    def __getattr__(self, name):
        return getattr(self.predictor, name)

    def __copy__(self):
        return self

    def __call__(self, *image, **wanted):
        self.begun.release()
        self.go.wait()
        return self.predictor(*image, **wanted)


def test_more_than_the_queue_are_refused_and_none_of_the_others_is_lost(predictor):
    slow = Waiting(predictor)
    address, stop = run(make_app({"slow": slow}, LIMITS))
    with ThreadPoolExecutor(LIMITS.queue + 1) as clients:
        asked = [clients.submit(ask, f"{address}/predict", encoded(IMAGE)) for _ in range(5)]
        slow.begun.acquire()
        refused = wait(asked, return_when=FIRST_COMPLETED).done
        slow.go.set()
        statuses = sorted(each.result()[0] for each in asked)
    stop()
    assert len(refused) == 1
    assert statuses == [200] * 4 + [503]


def test_what_takes_too_long_is_given_up(predictor):
    slow = Waiting(predictor)
    address, stop = run(make_app({"slow": slow}, LIMITS._replace(seconds=0.2)))
    status, body = ask(f"{address}/predict", encoded(IMAGE))
    slow.go.set()
    stop()
    assert (status, json.loads(body)["detail"]) == (504, "not done after 0.2 seconds")


def test_nothing_is_kept(url, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "temporary").mkdir()
    assert ask(f"{url}/predict?want=label&want=overlay&want=view", encoded(IMAGE))[0] == 200
    assert sorted(os.listdir(tmp_path)) in (["temporary"], ["cache", "temporary"])
    assert not os.listdir(tmp_path / "temporary")


def test_a_port_that_is_taken(trained):
    from hmsa.config.options import Compute

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1, port {port}"):
            serve([str(trained)], "127.0.0.1", port, LIMITS, Compute())


# What a person does: choose a file and send it
PERSON = """<script>
(async () => {
  const $ = id => document.getElementById(id), files = new DataTransfer();
  const content = Uint8Array.from(atob("IMAGE"), letter => letter.charCodeAt(0));
  files.items.add(new File([content], "photo.png", { type: "image/png" }));
  $("file").files = files.files; $("scales").value = "SCALES"; $("form").requestSubmit();
  while ($("go").disabled || !$("said").textContent)
    await new Promise(next => setTimeout(next, 50));
  const found = [$("said").textContent, $("label").download, $("result").hidden];
  document.body.dataset.said = found.join("; ");
})();
</script></body>"""


@pytest.mark.parametrize("scales", ["0.5,1", "99"])
def test_in_a_browser(predictor, tmp_path, scales):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    app = make_app({"mine": predictor}, LIMITS)
    image = base64.b64encode(encoded(IMAGE)).decode()
    person = PERSON.replace("IMAGE", image).replace("SCALES", scales)
    page = Service({"mine": predictor}, LIMITS).page().body.decode().replace("</body>", person)
    app.add_api_route("/person", lambda: HTMLResponse(page))
    address, stop = run(app)
    done = subprocess.run([
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=60000", "--dump-dom",
        f"{address}/person",
    ], capture_output=True, text=True, timeout=600)  # fmt: skip
    stop()
    said = re.search('data-said="(.*?)"', done.stdout)
    assert said, done.stderr[-2000:]
    if scales == "99":
        assert said[1].startswith("Not labelled: scales: at most 5, and up to 10")
        assert said[1].endswith("; ; true")
    else:
        assert said[1].startswith("photo.png, 80 × 48: ")
        assert said[1].endswith("; photo.png; false")
