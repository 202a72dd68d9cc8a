"""Runs the blocks of a page, in order, as a reader would: files, Python in one session, commands in a shell."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

BLOCK = re.compile(r'^```(python|bash)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
PORT = "8000"  # of the pages; a free one takes its place
# Runs one block after the other in one namespace; each ends with a line on stdout.
SESSION = """
import sys
names = {"__name__": "__main__"}
sys.path.insert(0, "")
for line in sys.stdin:
    text = open(line.strip(), encoding="utf-8").read()
    exec(compile(text, line.strip(), "exec"), names)
    print("block done", flush=True)
"""


def blocks(page: str) -> list[tuple[str, str, str]]:
    """Language, title and text of each block of a page that is to be run."""
    return [(m[1], m[2] or "", m[3]) for m in BLOCK.finditer(page)]


def run(found: list[tuple[str, str, str]], place: Path) -> str:
    """Run blocks in a folder; returns what they print.

    Raises:
        AssertionError: a block failed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    session = subprocess.Popen(
        [sys.executable, "-c", SESSION],
        cwd=place, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    servers: list[subprocess.Popen] = []
    printed = []
    try:
        for number, (language, title, text) in enumerate(found):
            text = text.replace(PORT, port)
            if title:
                (place / title).write_text(text, encoding="utf-8")
            elif language == "python":
                (place / f"block{number}.py").write_text(text, encoding="utf-8")
                printed.append(_python(session, f"block{number}.py"))
            elif text.startswith("sdb serve"):
                servers.append(subprocess.Popen(text, shell=True, cwd=place, env=env, start_new_session=True))
                _wait(f"http://127.0.0.1:{port}/v2/health/ready", servers[-1])
            else:
                done = subprocess.run(
                    ["bash", "-ec", text], cwd=place, env=env, capture_output=True, text=True, check=False
                )
                assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
                printed.append(done.stdout)
    finally:
        session.kill()
        for server in servers:
            os.killpg(server.pid, 15)
            server.wait()
    return "\n".join(printed)


def _python(session: subprocess.Popen, name: str) -> str:
    assert session.stdin is not None
    assert session.stdout is not None
    session.stdin.write(name + "\n")
    session.stdin.flush()
    lines = []
    for line in session.stdout:
        if line == "block done\n":
            return "".join(lines)
        lines.append(line)
    raise AssertionError(f"{name} failed: {''.join(lines)}")


def _wait(url: str, server: subprocess.Popen) -> None:
    for _ in range(600):
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError("the server did not come up")
