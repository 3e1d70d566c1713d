"""The HTTP face over a merge in this process: requests, limits, versions."""

from __future__ import annotations

import asyncio
import base64
import functools
import io
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

import tintray
from tests.answers import call
from tests.conftest import Published
from tests.tiny_zoo import TinyZoo
from tintray.errors import InputError
from tintray.jobs import api
from tintray.jobs.serving.batching import Batcher
from tintray.jobs.serving.http import build_app
from tintray.jobs.serving.metrics import Metrics
from tintray.jobs.serving.options import ServeOptions, serve_token
from tintray.jobs.serving.replicas import InProcess
from tintray.jobs.serving.versions import Place, Versions
from tintray.jobs.upkeep.aliases import change_alias

TOKEN = "a token of 16 or more".replace(" ", "-")


def picture(seed: int = 0, side: int = 16) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


IMAGE = base64.b64encode(picture()).decode()


class Face:
    """A server without a socket, and who asks it."""

    def __init__(self, versions: Versions, app: Any, headers: dict[str, str]) -> None:
        self.versions = versions
        self.client = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1:8000", headers=headers
        )

    async def predict(self, document: Any, task: str | None = None) -> httpx2.Response:
        path = "/v1/predict" if task is None else f"/v1/tasks/{task}:predict"
        return await self.client.post(path, json=document)

    async def version(self) -> str:
        found = await self.predict({"inputs": [{"image": IMAGE}]}, "three")
        assert found.status_code == 200, found.text
        return str(found.json()["version"])


@asynccontextmanager
async def face(
    merge: str | Path, *, token: str | None = None, store: Path | None = None, **settings: Any
) -> AsyncIterator[Face]:
    options = ServeOptions(replicas=0, **settings)
    catalog = f"sqlite:///{store}/catalog.db"
    place = Place.find(str(merge), catalog, options.pin)
    versions = Versions(place, InProcess(), options)
    await versions.start()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        yield Face(versions, build_app(versions, options, token, Metrics()), headers)
    finally:
        await versions.close()


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop of its own."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))

    return run


@in_loop
async def test_json_and_forms_are_answered_as_python_does(published: Published) -> None:
    merge = tintray.load(published.folder)
    async with face(published.folder) as server:
        inputs = [{"task": task, "image": IMAGE} for task in ("two", "five")]
        mixed = (await server.predict({"inputs": inputs})).json()
        for said, task in zip(mixed["answers"], ("two", "five"), strict=True):
            (alone,) = merge.predict(task, [picture()])
            assert said == {**alone.to_json(), "values": said["values"]}
            assert said["values"] == pytest.approx(alone.values, abs=1e-5)
            assert mixed["version"] == said["version"] == "tiny/v1"
        form = {"files": [("image", ("a.png", picture()))]}
        one = (await server.client.post("/v1/tasks/five:predict", **form)).json()
        array = {"inputs": [{"array": np.asarray(Image.open(io.BytesIO(picture()))).tolist()}]}
        other = (await server.predict(array, "five")).json()
        assert [one["answers"][0]["label"], other["answers"][0]["label"]] == [said["label"]] * 2
        fields: Any = [("task", (None, "two")), ("image", picture())]
        found = await server.client.post("/v1/predict", files=fields)
        assert found.json()["answers"][0]["task"] == "two"
        found = await server.predict({"inputs": [{"image": IMAGE}]}, "auto")
        (same,) = merge.predict_mixed([("auto", picture())])
        assert same.route is not None
        assert found.json()["answers"][0]["route"] == same.route.to_json()


@in_loop
async def test_what_is_served_is_told(published: Published) -> None:
    async with face(published.folder) as server:
        told = (await server.client.get("/v1/tasks")).json()
        tasks = told["tasks"]
        assert told["auto"], "what is published keeps statistics of its pools"
        assert [t["name"] for t in tasks] == ["two", "three", "five", "four"]
        assert {(t["kind"], t["takes"]) for t in tasks} == {("classification", "image")}
        assert tasks[0]["metric"]["value"] == published.summary.tasks[0].merged
        assert (await server.client.get("/readyz")).json() == {"ready": True}
        assert await server.version() == "tiny/v1"
        text = (await server.client.get("/metrics")).text
        assert 'tintray_examples_total{task="three",version="tiny/v1"} 1.0' in text
        assert 'tintray_tint_hit_rate{version="tiny/v1"} 0.2' in text  # four to warm up
        schema = (await server.client.get("/openapi.json")).json()
        body = schema["paths"]["/v1/predict"]["post"]["requestBody"]["content"]
        assert body["application/json"]["examples"]["two tasks"]["value"]["inputs"]
        page = await server.client.get("/")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "http://" not in page.text and "https://" not in page.text


def one(**given: Any) -> dict[str, Any]:
    return {"inputs": [given]}


BAD = [
    ("thre", one(image=IMAGE), 404, "tiny/v1 has no task 'thre' (did you mean 'three'"),
    (None, one(image=IMAGE), 400, 'inputs[0]: expected "task", the name of a task'),
    (None, {"inputs": [{"task": "two", "image": IMAGE}, 7]}, 400, "inputs[1]: expected an object"),
    ("two", one(image="@@"), 400, "inputs[0].image: it is not valid base64"),
    ("two", one(image="AAAA"), 400, "inputs[0]: the image cannot be read"),
    ("two", one(image=IMAGE[:200]), 400, "inputs[0]: the image cannot be read"),
    ("two", one(text="fine"), 400, "expected an image"),
    ("two", one(array=[[1, 2], [3]]), 400, "the image cannot be read"),
    ("two", one(array=[[[[1]]]]), 400, "expected uint8 images"),
    ("two", one(image=IMAGE, text="x"), 400, "expected one of image, text, words, array, found 2"),
    ("two", one(picture=IMAGE), 400, "expected array, image, task, text, text_pair, words, found"),
    ("two", one(image=IMAGE, task="three"), 400, "the path names the task 'two'"),
    ("two", {"inputs": []}, 400, "expected a body such as"),
    ("two", {"inputs": [{"image": IMAGE}], "top": 3}, 400, "expected the field inputs alone"),
    ("two", {"inputs": [{"image": IMAGE}] * 9}, 400, "9 inputs, and one may have 8"),
    ("two", [1], 400, "expected a body such as"),
    ("two", one(image=base64.b64encode(picture(side=70)).decode()), 400, "max_image_pixels"),
    ("two", one(text="x" * 40_000), 413, "the body has more than the 40,000 bytes"),
]


@in_loop
async def test_what_is_wrong_with_a_request_has_its_code_and_one_sentence(
    published: Published,
) -> None:
    async with face(published.folder, max_examples=8, max_pixels=4096, max_body=40_000) as server:
        for task, document, code, sentence in BAD:
            found = await server.predict(document, task)
            assert (found.status_code, list(found.json())) == (code, ["error"]), found.text
            assert sentence in found.json()["error"] and "\n" not in found.json()["error"]

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(9):
                yield b" " * 5000

        sent: dict[str, Any] = {"headers": {"Content-Type": "application/json"}}
        ask = server.client
        for code, found in (
            (400, await ask.post("/v1/predict", content=b"{", **sent)),
            (400, await ask.post("/v1/predict", content=b"[" * 20_000, **sent)),
            (413, await ask.post("/v1/predict", content=chunks(), **sent)),
            (415, await ask.post("/v1/predict", content=b"{}")),
            (415, await ask.post("/v1/versions:promote", content=b"{}")),
            (409, await ask.post("/v1/versions:promote", content=b"{}", **sent)),
            (404, await ask.get("/v2/predict")),
            (405, await ask.get("/v1/predict")),
            (421, await ask.get("/v1/tasks", headers={"Host": "elsewhere.example"})),
        ):
            assert found.status_code == code and isinstance(found.json()["error"], str), found.text
        assert await server.version() == "tiny/v1"


@in_loop
async def test_nothing_is_told_without_the_token(published: Published) -> None:
    async with face(published.folder, token=TOKEN) as server:
        assert await server.version() == "tiny/v1"
        for given in ("", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer"):
            for path in ("/v1/tasks", "/metrics", "/openapi.json", "/v1/versions"):
                found = await server.client.get(path, headers={"Authorization": given})
                assert (found.status_code, found.headers["www-authenticate"]) == (401, "Bearer")
            for path in ("/", "/healthz", "/readyz"):
                found = await server.client.get(path, headers={"Authorization": given})
                assert found.status_code == 200


@pytest.mark.parametrize(
    ("host", "token", "sentence"),
    [
        ("0.0.0.0", None, "can be reached from other machines, and TINTRAY_SERVE_TOKEN is not set"),
        ("::", None, "can be reached from other machines"),
        ("models.example", None, "can be reached from other machines"),
        ("127.0.0.1", "short", "expected 16 or more ASCII characters"),
        ("127.0.0.1", None, None),
        ("::1", None, None),
        ("0.0.0.0", TOKEN, None),
    ],
)
def test_who_listens_to_others_needs_a_token(
    host: str, token: str | None, sentence: str | None
) -> None:
    environment = {} if token is None else {"TINTRAY_SERVE_TOKEN": token}
    if sentence is None:
        assert serve_token(ServeOptions(host=host), environment) == token
        return
    with pytest.raises(InputError, match=sentence):
        serve_token(ServeOptions(host=host), environment)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nothing"], "nothing"),
        (["{merge}", "--pin", "v9"], "tiny/v9 holds no merge"),
        (["{merge}", "--pin", "nine"], "expected a version such as v3"),
        (["{merge}", "--canary", "120%"], "expected a share such as 5%"),
        (["{merge}", "--canary", "5%", "--pin", "v1"], "leave one of them out"),
        (["{merge}", "--tint-memory", "some"], "--tint-memory: expected an amount of memory"),
        (["{merge}", "--host", "0.0.0.0"], "can be reached from other machines"),
        (["{merge}", "--host", "192.0.2.77", "--port", "0"], "TINTRAY_SERVE_TOKEN"),
        (["status", "--url", "http://127.0.0.1:9"], "no server of tintray answers"),
        (["status", "--url", "file:///etc/passwd"], "expected one such as http://"),
    ],
)
def test_a_server_that_cannot_be_started_says_why(
    published: Published, words: list[str], sentence: str
) -> None:
    store = published.folder.parents[2]
    given = [word.format(merge=f"{store}/merges/tiny") for word in words]
    places = [] if words[0] == "status" else ["--replicas", "0", "--store", store]
    found = call("serve", *given, *places)
    assert found.code in (1, 2) and not found.out
    assert sentence in found.err and "Traceback" not in found.err


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tintray.errors.find_spec", lambda name: None)
    found = call("serve", "digits")
    assert "pip install 'tintray[serve]'" in found.sentence


class Slow:
    """Replicas that answer when they are let, and note what they were asked."""

    def __init__(self) -> None:
        self.go, self.asked = asyncio.Event(), list[int]()

    async def predict(self, examples: Any) -> list[Any]:
        self.asked.append(len(examples))
        await self.go.wait()
        return list(examples)

    async def stats(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        """Nothing is held."""


@in_loop
async def test_requests_gather_while_replicas_are_busy_and_no_more_wait_than_may() -> None:
    options = ServeOptions(max_batch_size=4, max_queued=6, batch_wait_ms=0, timeout=5, passes=1)
    replicas = Slow()
    batcher = Batcher(replicas, options)
    first = []
    for n in range(2):  # as many batches as a replica has at once
        first.append(asyncio.create_task(batcher.predict([("a", n)])))
        await asyncio.sleep(0.05)
    later = [asyncio.create_task(batcher.predict([("b", n), ("c", n)])) for n in range(3)]
    await asyncio.sleep(0.05)
    with pytest.raises(tintray.TintrayError, match="6 examples wait already; ask again"):
        await batcher.predict([("d", 0)])
    replicas.go.set()
    assert await asyncio.gather(*first, *later) == [
        *([("a", 0)], [("a", 1)]),
        *([("b", n), ("c", n)] for n in range(3)),
    ]
    assert replicas.asked == [1, 1, 4, 2]
    await batcher.close()


@in_loop
async def test_an_example_waits_for_others_only_while_some_are_out() -> None:
    replicas = Slow()
    batcher = Batcher(replicas, ServeOptions(batch_wait_ms=60_000, timeout=5, passes=2))
    first = asyncio.create_task(batcher.predict([("a", 0)]))
    while not replicas.asked:
        await asyncio.sleep(0.01)
    others = [asyncio.create_task(batcher.predict([("b", n)])) for n in range(2)]
    await asyncio.sleep(0.05)
    assert replicas.asked == [1]
    replicas.go.set()  # nothing is out any more: nobody has to wait
    assert await asyncio.gather(first, *others) == [[("a", 0)], [("b", 0)], [("b", 1)]]
    assert replicas.asked == [1, 2]
    await batcher.close()


@in_loop
async def test_who_waits_too_long_is_told_and_the_others_are_answered() -> None:
    replicas = Slow()
    batcher = Batcher(replicas, ServeOptions(timeout=0.1, batch_wait_ms=0))
    with pytest.raises(tintray.TimedOutError, match="no answer within"):
        await batcher.predict([("a", 0)])
    replicas.go.set()
    assert await batcher.predict([("a", 1)]) == [("a", 1)]
    await batcher.close()


# -- versions --------------------------------------------------------------------------------------


@pytest.fixture
def store(tiny: TinyZoo, tmp_path: Path) -> Path:
    """A store of its own, whose merge may grow."""
    api.run(tiny.spec(tmp_path / "store"))
    return tmp_path / "store"


def publish(store: Path) -> str:
    """A new version: one without a task, later the first one again."""
    words = ["rollback", "tiny", "--to", "v1"]
    if not (store / "merges/tiny/v2").exists():
        words = ["remove-task", "tiny", "four", "--set", "growth.tolerance=100"]
    found = call(*words, "--store", store, "--json").document
    return f"tiny/{found['version']}"


@in_loop
async def test_a_new_version_is_taken_up_and_one_that_is_pinned_stays(store: Path) -> None:
    assert publish(store) == "tiny/v2"
    async with (
        face(f"{store}/merges/tiny", pin=1) as pinned,
        face("tiny", store=store) as followed,
    ):
        assert (await pinned.version(), await followed.version()) == ("tiny/v1", "tiny/v2")
        assert await asyncio.to_thread(publish, store) == "tiny/v3"
        for server in (pinned, followed):
            if server is followed:
                await server.versions.look()
        assert (await pinned.version(), await followed.version()) == ("tiny/v1", "tiny/v3")
        told = await pinned.versions.status()
        assert told["pinned"] and told["candidate"] is None


@in_loop
async def test_an_alias_is_followed_wherever_it_goes(store: Path) -> None:
    await asyncio.to_thread(publish, store)
    change_alias("tiny@production", 2, store=str(store))
    async with face("tiny@production", store=store) as server:
        for version in (2, 1, 2):
            change_alias("tiny@production", version, store=str(store))
            await asyncio.to_thread(publish, store)  # which is not what is asked for
            await server.versions.look()
            assert await server.version() == f"tiny/v{version}"


@in_loop
async def test_a_canary_gets_its_share_until_it_is_promoted_or_aborted(store: Path) -> None:
    headers = {"Content-Type": "application/json"}
    async with face("tiny", store=store, canary=0.5) as server:
        await asyncio.to_thread(publish, store)
        await server.versions.look()
        seen = {await server.version() for _ in range(30)}
        assert seen == {"tiny/v1", "tiny/v2"}
        told = (await server.client.get("/v1/versions")).json()
        assert (told["stable"]["version"], told["candidate"]["version"]) == tuple(sorted(seen))
        assert told["stable"]["requests"] + told["candidate"]["requests"] == 30
        figures = {task["task"]: (task["stable"], task["candidate"]) for task in told["tasks"]}
        assert all(value is not None for value, _ in figures.values()) and len(figures) == 4
        assert figures["four"][1] is None and figures["two"][1] is not None
        assert (await server.client.post("/v1/versions:abort", json={})).json() == {
            "aborted": "tiny/v2"
        }
        await server.versions.look()
        assert {await server.version() for _ in range(10)} == {"tiny/v1"}
        await asyncio.to_thread(publish, store)
        await server.versions.look()
        found = await server.client.post("/v1/versions:promote", content=b"{}", headers=headers)
        assert found.json() == {"promoted": "tiny/v3"}
        assert {await server.version() for _ in range(10)} == {"tiny/v3"}


@in_loop
async def test_a_version_that_cannot_be_opened_is_not_taken_up(store: Path) -> None:
    async with face("tiny", store=store) as server:
        newest = await asyncio.to_thread(publish, store)
        backbone = store / "merges" / newest / "backbone.safetensors"
        content = backbone.read_bytes()
        backbone.unlink()
        await server.versions.look()
        assert await server.version() == "tiny/v1"
        refused = (await server.versions.status())["refused"]
        assert "lacks the file backbone.safetensors" in refused["v2"]
        backbone.write_bytes(content)


@in_loop
async def test_tints_that_cannot_be_fetched_are_told_and_those_in_memory_go_on(
    store: Path,
) -> None:
    async with face("tiny", store=store, tint_memory="1") as server:
        await server.version()  # the tint of ``three`` is in memory now
        shutil.rmtree(store / "merges")
        assert await server.version() == "tiny/v1"
        found = await server.predict(one(image=IMAGE), "five")
        assert found.status_code == 503 and found.headers["retry-after"]
        assert "lacks the file tints/five.safetensors" in found.json()["error"]
        await server.versions.look()  # nothing is published any more: what is served goes on
        assert await server.version() == "tiny/v1"
