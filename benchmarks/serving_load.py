"""Servers as processes, a plain one to compare with, and clients who ask them."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

STARTED = re.compile(r"http://127\.0\.0\.1:(\d+)")
_PATIENCE = 300.0  # seconds that a server may take to start on a busy machine

Ask = Callable[[http.client.HTTPConnection, int], None]
"""One request over a connection; the number says which."""


def encoded(images: NDArray[np.uint8]) -> list[str]:
    """Each image as a PNG in base64."""
    found = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        found.append(base64.b64encode(file.getvalue()).decode())
    return found


@contextmanager
def running(*command: str) -> Iterator[tuple[int, int]]:
    """The port and the process of a server that says on standard error where it listens."""
    environment = {**os.environ, "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *command], stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stderr is not None
    started, lines = threading.Event(), list[str]()

    def read(stream: Any) -> None:
        for line in stream:
            lines.append(line)
            if STARTED.search(line):
                started.set()

    threading.Thread(target=read, args=(process.stderr,), daemon=True).start()
    try:
        until = time.monotonic() + _PATIENCE
        while not started.wait(0.2):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("a server did not start: " + "".join(lines[-5:]))
        yield int(STARTED.findall("".join(lines))[-1]), process.pid
    finally:
        process.terminate()
        process.wait(90)


def tintray_server(*words: str) -> Any:
    """``tintray serve`` with these words, on a free port."""
    program = "import sys; from tintray.jobs.cli import main; sys.exit(main())"
    return running("-c", program, "serve", *words, "--port", "0")


def plain_server(folder: Path) -> Any:
    """A FastAPI server of one model, written as anybody would; see ``main``."""
    return running("-m", "benchmarks.serving_load", str(folder))


@dataclass
class Load:
    """What clients saw."""

    requests: int
    seconds: float
    latencies: list[float]

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds

    def percentile(self, share: float) -> float:
        """Seconds within which this share of the requests was answered."""
        return float(np.quantile(self.latencies, share))


def load(port: int, ask: Ask, seconds: float, clients: int = 16, rate: float | None = None) -> Load:
    """Ask for so long: each client as fast as it is answered, or all at a ``rate`` together.

    At a rate, a request's time begins when it was due: who waits for a slow server is counted.
    """
    began = time.perf_counter()
    until = began + seconds

    def client(number: int) -> list[float]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        taken, count = [], 0
        while True:
            due = time.perf_counter()
            if rate is not None:
                due = began + (count + number / clients) * clients / rate
                time.sleep(max(0.0, due - time.perf_counter()))
            if due > until:
                return taken
            ask(connection, number + clients * count)
            taken.append(time.perf_counter() - due)
            count += 1

    with ThreadPoolExecutor(clients) as threads:
        found = [one for part in threads.map(client, range(clients)) for one in part]
    return Load(len(found), time.perf_counter() - began, found)


def post(connection: http.client.HTTPConnection, path: str, document: Any) -> tuple[Any, Any]:
    """The response, read, and its JSON."""
    headers = {"Content-Type": "application/json"}
    connection.request("POST", path, json.dumps(document), headers)
    response = connection.getresponse()
    return response, json.loads(response.read())


def main(folder: str) -> None:
    """Serve the model in a folder: an image in, a class and its probability out."""
    import torch
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    torch.set_num_threads(1)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    app = FastAPI()

    class Body(BaseModel):
        """What is asked."""

        image: str

    def predict(body: Body) -> dict[str, Any]:
        image = Image.open(io.BytesIO(base64.b64decode(body.image))).convert("RGB")
        with torch.inference_mode():
            logits = model(**processor(image, return_tensors="pt")).logits[0]
        confidence, label = logits.softmax(-1).max(-1)
        return {"label": int(label), "confidence": float(confidence), "values": logits.tolist()}

    predict.__annotations__["body"] = Body  # it is a class of this function
    app.post("/predict")(predict)
    config = uvicorn.Config(app, port=0, log_level="warning")
    server = uvicorn.Server(config)
    listening = config.bind_socket()
    print(f"plain: http://127.0.0.1:{listening.getsockname()[1]}", file=sys.stderr, flush=True)
    server.run(sockets=[listening])


if __name__ == "__main__":
    main(sys.argv[1])
