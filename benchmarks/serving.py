"""What serving many tasks from one backbone costs, beside one model alone.

    python -m benchmarks.serving [--seconds 120] [--folder DIR] [--shared DIR]

Five parts: mixed batches in process; memory, with all tints and with a budget; HTTP beside a plain
FastAPI server of one model; clients at once while versions change and a replica is killed; whether
examples of the ten tasks of `examples/ten-scripts.yaml`, after a fit of 60 rounds, find their task,
and foreign ones are noticed. The last line is JSON; ``routed`` and ``auroc`` are null where the
folder ``--shared``, of the zoo and its data, is not there.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import tintray
from benchmarks.quality.zoos import ZOOS
from benchmarks.routing import figures
from benchmarks.serving_load import encoded, load, plain_server, post, tintray_server
from benchmarks.serving_zoo import publish, two_tasks
from tintray.limits import size_text
from tintray.models.calling import answer
from tintray.serving.engine import Engine

TASKS, MANY, BUDGET = 32, 200, 20
BATCH = 32
REPEATS = 15
CHANGES = 3
SCENES = ("dense/camvid64.npz#test", "dense/fasseg64.npz#test")
IMAGES = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3)).astype(np.uint8)
_CLOSE = 1e-4


def medians(repeats: int, *parts: Callable[[], object]) -> list[float]:
    """Median seconds of each, taken in turn: what else the machine does falls on all alike."""
    taken: list[list[float]] = [[] for _ in parts]
    for _ in range(repeats):
        for number, part in enumerate(parts):
            began = time.perf_counter()
            part()
            taken[number].append(time.perf_counter() - began)
    return [statistics.median(one) for one in taken]


def in_process(store: Path) -> float:
    """Mixed batches through the engine, over batches of one task through its model alone."""
    merge = tintray.load(store / "merges/many/v1")
    engine, model = Engine(merge), merge.for_task(merge.tasks[0])
    processor, images = merge.processor(merge.tasks[0]), [IMAGES[n % 16] for n in range(BATCH)]
    examples = list(zip(merge.tasks, images, strict=True))

    def single() -> list[Any]:
        made = processor([Image.fromarray(one) for one in images], return_tensors="pt")
        with torch.inference_mode():
            confidence, labels = answer(model, dict(made)).softmax(-1).max(-1)
        return list(zip(labels.tolist(), confidence.tolist(), strict=True))

    engine.warm()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        one, mixed = medians(REPEATS, single, lambda: engine.answer(examples))
        print(
            f"{threads} thread(s): {BATCH} examples of one task {1000 * one:.0f} ms, of "
            f"{TASKS} tasks {1000 * mixed:.0f} ms: {one / mixed:.2f} of the throughput"
        )
    torch.set_num_threads(1)
    return one / mixed


def _held(of: Iterable[Tensor]) -> int:
    """Bytes of all storages, each once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in of}
    return sum(storages.values())


def _alive() -> int:
    """Bytes that the tensors of this process hold."""
    gc.collect()
    return _held(one for one in gc.get_objects() if type(one) in (Tensor, torch.nn.Parameter))


def memory(store: Path) -> float:
    """What an engine of all tasks holds, over one model and the tints."""
    merge = tintray.load(store / "merges/many/v1")
    one = _held(merge.for_task(merge.tasks[0]).state_dict().values())
    tints = sum(_held(merge.tint(task).values()) for task in merge.tasks)
    del merge
    before = _alive()
    engine = Engine(tintray.load(store / "merges/many/v1"))
    engine.answer([(task, IMAGES[0]) for task in engine.merge.tasks])
    held = _alive() - before
    print(
        f"{TASKS} tasks in memory: {size_text(held)}; one model {size_text(one)}, tints "
        f"{size_text(tints)}"
    )
    return held / (one + tints)


def budget(store: Path) -> None:
    """Many tasks, some asked more often than others, with room for a few."""
    engine = Engine(tintray.load(store / "merges/hundreds/v1"), tint_memory=BUDGET)
    random, largest = np.random.default_rng(0), 0
    weights = 1 / np.arange(1, MANY + 1)
    for _ in range(40):
        chosen = random.choice(MANY, 16, p=weights / weights.sum())
        engine.answer([(engine.merge.tasks[n], IMAGES[n % 16]) for n in chosen])
        largest = max(largest, engine.tints["bytes"])
    found = engine.tints
    share = found["hits"] / (found["hits"] + found["misses"])
    each = found["bytes"] / found["tasks"]
    print(
        f"{MANY} tasks, room for {BUDGET}: {size_text(largest)} of tints at most "
        f"({largest / each:.0f} tasks), {100 * share:.0f} % found in memory (the nth task is asked "
        "1/n as often as the first)"
    )


def over_http(store: Path, folder: Path, seconds: float) -> float:
    """Requests a second and late answers, beside a plain server of one model."""
    merge = tintray.load(store / "merges/many/v1")
    merge.export(merge.tasks[0], folder)
    bodies = encoded(IMAGES)

    def ask_plain(connection: Any, number: int) -> None:
        response, _ = post(connection, "/predict", {"image": bodies[number % 16]})
        assert response.status == 200

    def ask(connection: Any, number: int) -> None:
        path = f"/v1/tasks/{merge.tasks[number % TASKS]}:predict"
        response, _ = post(connection, path, {"inputs": [{"image": bodies[number % 16]}]})
        assert response.status == 200

    served = str(store / "merges/many/v1")
    with plain_server(folder) as (plain, _), tintray_server(served) as (ours, _):
        for port, one in ((plain, ask_plain), (ours, ask)):
            load(port, one, seconds / 4)  # warm
        rates = [
            (load(plain, ask_plain, seconds).rate, load(ours, ask, seconds).rate) for _ in range(3)
        ]
        shares = [mine / other for other, mine in rates]
        half = statistics.median(other for other, _ in rates) / 2
        late = [load(*one, seconds, rate=half).percentile(0.99)
                for one in ((plain, ask_plain), (ours, ask))]  # fmt: skip
    told = ", ".join(f"{mine:.0f} to {other:.0f}" for other, mine in rates)
    print(f"requests a second, {TASKS} tasks to one model: {told}")
    print(
        f"99 of 100 answered at {half:.0f} a second within {1000 * late[1]:.0f} ms, by the plain "
        f"server within {1000 * late[0]:.0f} ms: {late[1] / late[0]:.2f} times"
    )
    return statistics.median(shares)


def storm(seed: Any, store: Path, seconds: float, clients: int) -> tuple[int, int]:
    """Wrong answers and failures of many clients while versions change and a replica dies."""
    tasks = [f"task{number:03}" for number in range(TASKS)]
    bodies, codes = encoded(IMAGES), Counter[int]()
    answers: list[tuple[str, str, int, list[float]]] = []

    def ask(connection: Any, number: int) -> None:
        random = np.random.default_rng(number)
        chosen = [(tasks[random.integers(TASKS)], int(random.integers(16))) for _ in range(2)]
        inputs = [{"task": task, "image": bodies[image]} for task, image in chosen]
        try:
            response, found = post(connection, "/v1/predict", {"inputs": inputs})
        except OSError:
            connection.close()
            codes[0] += 1
            return
        told = response.status in (429, 503) and response.headers["Retry-After"]
        codes[response.status if not told else -1] += 1
        if told:
            time.sleep(1)
        elif response.status == 200:
            for one, (task, image) in zip(found["answers"], chosen, strict=True):
                answers.append((one["version"], task, image, one["values"]))

    began = time.monotonic()
    with tintray_server(str(store / "merges/many"), "--poll", "1") as (port, process):
        done = list[str]()
        changes = Thread(target=_change, args=(seed, store, process, answers, done, seconds))
        changes.start()
        while not done or time.monotonic() < began + seconds:
            load(port, ask, min(10.0, seconds), clients)
        changes.join()
    versions = ", ".join(sorted({version for version, *_ in answers}))
    print(
        f"{clients} clients, {time.monotonic() - began:.0f} s: {len(answers):,} answers of "
        f"{versions}; {codes[-1]:,} requests told to come again; {done[0]}"
    )
    failed = sum(count for code, count in codes.items() if code not in (200, -1))
    return _wrong(store, answers), failed


def _change(
    seed: Any, store: Path, process: int, answers: list[Any], done: list[str], seconds: float
) -> None:
    """Publish version after version, each when the last one answers; kill a replica between."""
    until = time.monotonic() + 10 * seconds
    for version in range(2, CHANGES + 2):
        publish(seed, store, TASKS, version)
        while f"many/v{version}" not in {found for found, *_ in answers[-64:]}:
            if time.monotonic() > until:
                done.append(f"v{version} was not taken up")
                return
            time.sleep(0.2)
        if version == 2:
            os.kill(_replica_of(process), signal.SIGKILL)
    done.append(f"{CHANGES} versions taken up, one replica killed")


def _replica_of(process: int) -> int:
    """The process of a replica of a server: one of Ray's, below the server, that is called so."""
    listed = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    )
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
    below, size = {str(process)}, 0
    while len(below) > size:
        size = len(below)
        below |= {pid for pid, parent, *_ in rows if parent in below}
    return next(int(pid) for pid, _, name in rows if pid in below and "ServeReplica" in name)


def _wrong(store: Path, answers: list[tuple[str, str, int, list[float]]]) -> int:
    """Answers that are not those of ``for_task`` of the version that they name."""
    wrong = 0
    for version in {version for version, *_ in answers}:
        merge = tintray.load(store / "merges" / version)
        own = [one for one in answers if one[0] == version]
        made = merge.processor(own[0][1])([Image.fromarray(one) for one in IMAGES],
                                          return_tensors="pt")  # fmt: skip
        for task in {task for _, task, *_ in own}:
            with torch.inference_mode():
                expected = answer(merge.for_task(task), dict(made)).numpy()
            for _, named, image, values in own:
                wrong += named == task and not np.allclose(values, expected[image], _CLOSE, _CLOSE)
    return wrong


def routed(shared: Path, store: Path) -> dict[str, float | None]:
    """Whether the test examples of the ten tasks find theirs; see ``benchmarks.routing``."""
    if not (shared / "zoo").is_dir():
        print(f"routing: {shared}/zoo is not there")
        return {"routed": None, "auroc": None}
    own = (f"store={store}", f"catalog=sqlite:///{store}/catalog.db", "fit.rounds=60")
    merge = tintray.run(ZOOS["hard"].spec(shared, own))
    letters = np.load(shared / "data/vision/omniglot.npz")["x"]
    np.savez(store / "omniglot.npz", x_test=letters[::10])
    foreign = [f"{store}/omniglot.npz#test", *(f"{shared}/data/{one}" for one in SCENES)]
    found = figures(merge, foreign)
    print(f"{found['lost']} points lost where nobody names the task; routing takes "
          f"{found['latency']:.1%} of a forward pass")  # fmt: skip
    return {name: found[name] for name in ("routed", "auroc")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120, help="of the last part")
    parser.add_argument("--clients", type=int, default=64, help="of the last part")
    parser.add_argument("--folder", type=Path, help="where merges are made; left out, nowhere")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    given = parser.parse_args()
    with TemporaryDirectory(prefix="tintray-") as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)
        torch.manual_seed(0)
        seed, store = two_tasks(folder / "two"), folder / "many"
        publish(seed, store, TASKS, 1)
        publish(seed, store, MANY, 1, name="hundreds")
        found: dict[str, Any] = {"mixed_over_single": round(in_process(store), 3)}
        found["memory_over_one"] = round(memory(store), 3)
        budget(store)
        part = max(2.0, given.seconds / 12)
        found["http_over_plain"] = round(over_http(store, folder / "exported", part), 3)
        found["wrong"], found["failed"] = storm(seed, store, given.seconds, given.clients)
        found |= routed(given.shared.resolve(), folder / "ten")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
