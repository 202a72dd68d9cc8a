"""A real Ray cluster of two nodes on this machine, for tests; run it where only the loopback interface is up.

    unshare -n sh -c 'ip link set lo up; python two_nodes.py'

Says {"ready": true}, then reads one order a line on stdin and answers each with one line on stdout. An order has the
command's `args` (ADDRESS stands for the cluster's) and its `cwd`, and may have `kill`, the start of the names of tasks,
and `wait_for`, a file. While the file is there and a task of such a name runs on the second node, that node is killed
with all its processes, or, where `orphan` is true, without those that do the work. A new node joins when the command
has ended, or at once where `replace` is true.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


def status(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return None


def children(parent):
    numbers = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in numbers if (found := status(pid)) and int(found[1]) == parent]


def running(raylet):
    """The names of the tasks that a node's workers are doing: Ray puts them into the titles of the processes."""
    names = []
    for pid in children(raylet):
        with contextlib.suppress(OSError):
            title = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
            if title.startswith("ray::"):
                names.append(title.removeprefix("ray::").strip())
    return names


def kill(node, order, process):
    """Kill a node with all its processes in the midst of a task; the task's name, or None where it never came to it."""
    raylet = next(p.process.pid for ps in node.all_processes.values() for p in ps if "raylet" in p.process.args[0])
    while process.poll() is None:
        for name in running(raylet) if Path(order.get("wait_for", "/")).exists() else []:
            if name.startswith(order["kill"]):
                for pid in [raylet, *([] if order.get("orphan") else children(raylet))]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                return name
        time.sleep(0.01)
    return None


def renewed(cluster, node):
    """A node in place of a killed one."""
    cluster.remove_node(node, allow_graceful=False)
    return cluster.add_node(**SIZE)


def serve(cluster):
    second = cluster.add_node(**SIZE)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        arguments = [text.replace("ADDRESS", cluster.address) for text in order["args"]]
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            process = subprocess.Popen(arguments, cwd=order["cwd"], stdout=out, stderr=err)
            killed = kill(second, order, process) if "kill" in order else None
            if killed and order.get("replace"):
                second = renewed(cluster, second)
            code = process.wait()
            out.seek(0), err.seek(0)
            answer = {"code": code, "killed": killed, "out": out.read(), "err": err.read()}
        if killed and not order.get("replace"):
            second = renewed(cluster, second)
        print(json.dumps(answer), flush=True)


def main():
    # Short: the paths of Ray's sockets must be.
    home = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    os.environ["HOME"] = home
    from ray.cluster_utils import Cluster

    head = {**SIZE, "include_dashboard": False, "temp_dir": home}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        serve(cluster)
    finally:
        cluster.shutdown()
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
