"""Run a real S3-compatible server on loopback: OpenStack Swift with its s3api middleware.

``python swift_server.py FOLDER`` keeps everything in FOLDER, prints one JSON line with the endpoint
and credentials when it is ready, and ends with its standard input: it cannot outlive its parent.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ACCOUNT, USER, SECRET = "test", "tester", "testing"
READY_SECONDS = 60

SWIFT = """\
[swift-hash]
swift_hash_path_prefix = tests
swift_hash_path_suffix = tests
[storage-policy:0]
name = default
default = yes
"""
COMMON = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
disable_fallocate = true
log_level = WARNING
log_address = {folder}/no-syslog
"""
FILTERS = "catch_errors gatekeeper healthcheck listing_formats s3api tempauth copy slo"
OPTIONS = {
    "s3api": "location = us-east-1",
    "tempauth": f"user_{ACCOUNT}_{USER} = {SECRET} .admin",
}
PROXY = f"""\
[pipeline:main]
pipeline = {FILTERS} proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
""" + "".join(
    f"[filter:{name}]\nuse = egg:swift#{name}\n{OPTIONS.get(name, '')}\n"
    for name in FILTERS.split()
)
BACKEND = """\
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""
BACKENDS = ("account", "container", "object")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def write_ring(folder: Path, kind: str, port: int) -> None:
    from swift.common.ring import RingBuilder

    builder = RingBuilder(part_power=4, replicas=1, min_part_hours=0)
    place = {"ip": "127.0.0.1", "port": port, "device": "d1"}
    copies = {"replication_ip": "127.0.0.1", "replication_port": port}
    builder.add_dev({"id": 0, "region": 1, "zone": 1, "weight": 1.0} | place | copies)
    builder.rebalance(seed=1)
    builder.get_ring().save(str(folder / f"{kind}.ring.gz"))


def configure(folder: Path) -> dict[str, int]:
    """Write rings and configuration; returns the port of each server."""
    (folder / "devices" / "d1").mkdir(parents=True, exist_ok=True)
    (folder / "swift.conf").write_text(SWIFT)
    ports = {kind: free_port() for kind in (*BACKENDS, "proxy")}
    for kind, port in ports.items():
        if kind != "proxy":
            write_ring(folder, kind, port)
        common = COMMON.format(port=port, user=getpass.getuser(), folder=folder)
        body = PROXY if kind == "proxy" else BACKEND.format(kind=kind)
        (folder / f"{kind}.conf").write_text(common + body)
    return ports


def start(folder: Path, kind: str) -> subprocess.Popen[bytes]:
    program = Path(sys.executable).with_name(f"swift-{kind}-server")
    command = [sys.executable, str(program), str(folder / f"{kind}.conf")]
    with (folder / f"{kind}.log").open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def answers(kind: str, port: int) -> bool:
    try:
        if kind == "proxy":
            url = f"http://127.0.0.1:{port}/healthcheck"
            with urllib.request.urlopen(url, timeout=1) as answer:
                return bool(answer.read() == b"OK")
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def wait_until_ready(ports: dict[str, int], servers: list[subprocess.Popen[bytes]]) -> None:
    give_up = time.monotonic() + READY_SECONDS
    while not all(answers(kind, port) for kind, port in ports.items()):
        if time.monotonic() > give_up or any(server.poll() is not None for server in servers):
            raise SystemExit("Swift did not start; its folder has the logs")
        time.sleep(0.05)


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    os.environ.pop("PYTHONPATH", None)
    ports = configure(folder)
    servers = [start(folder, kind) for kind in ports]
    try:
        wait_until_ready(ports, servers)
        ready = {"endpoint": f"http://127.0.0.1:{ports['proxy']}", "key": f"{ACCOUNT}:{USER}"}
        print(json.dumps(ready | {"secret": SECRET}), flush=True)
        sys.stdin.read()
    finally:
        for server in servers:
            server.kill()
        for server in servers:
            server.wait()


if __name__ == "__main__":
    main()
