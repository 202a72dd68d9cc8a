"""Work on a Ray cluster (extra `ray`): nodes are alike and see one folder; a lost node's work is done elsewhere."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from sdb.errors import ConfigError, MissingExtraError, RunExistsError, SDBError, TrainingError
from sdb.runs.tasks.work import Failure, Where, Work, attempt, host_and_port
from sdb.runtime import environment, keep_freed_memory, write_atomic

# A piece of work is started again this many times when its process or node is lost.
RETRIES = 3
# Seconds: to reach an address, for a node to answer, between looks at the nodes, without a node that fits.
REACH, ANSWER, LOOK, STARVED = 10.0, 120.0, 5.0, 60.0
# Seconds that a lost node's work may still hold its folder before that is an error.
HELD = 120.0
# Pieces handed to the cluster for each that it can do now: a node that joins finds work, an autoscaler sees demand.
AHEAD = 2


@dataclass(frozen=True, slots=True)
class Site:
    """What must be the same wherever work is done.

    Attributes:
        versions: of sdb, its commit, and torch.
        folder: the current folder; relative paths are relative to it.
        tokens: files that must be seen, and what is in them.
        variables: of the environment, such as where data are. No secrets: the cluster keeps what it is sent.
    """

    versions: tuple[tuple[str, str | None], ...]
    folder: str
    tokens: tuple[tuple[str, str], ...] = ()
    variables: tuple[tuple[str, str], ...] = ()


class Cluster:
    """The nodes of a Ray cluster.

    Args:
        where: the cluster's address, and what one piece of work asks of a node.
        folders: that every node must see.
    """

    def __init__(self, where: Where, folders: Sequence[Path]) -> None:
        self._where, self._folders = where, folders
        self._under_way: dict[Any, str] = {}
        self._now = self.places = 0

    def __enter__(self) -> Cluster:
        with contextlib.ExitStack() as stack:
            self._ray = stack.enter_context(connected(self._where.cluster or "auto"))
            self._look()
            if not self._now:
                raise ConfigError(f"cluster: no node has {self._asked()} for a piece of work; {self._nodes_say()}")
            site = stack.enter_context(same_site(self._folders))
            self._site = site if self._where.task_gpus else without_gpu(site)
            self._check_nodes()
            self._serve = self._ray.remote(
                num_cpus=self._where.task_cpus,
                num_gpus=self._where.task_gpus,
                max_retries=RETRIES,
                scheduling_strategy="SPREAD",
            )(serve)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            for reference in self._under_way:
                self._ray.cancel(reference, force=True)

    def has_room(self) -> bool:
        """Whether the cluster has no more than it can do soon."""
        return len(self._under_way) < max(1, AHEAD * self._now)

    def begin(self, work: Work) -> None:
        """Hand a piece of work to the cluster."""
        named = self._serve.options(name=work.name)
        self._under_way[named.remote(self._site, work.call, work.arguments)] = work.name

    def finished(self) -> tuple[str, SDBError | None]:
        """Wait for the next that ends; its name, and its error.

        Raises:
            ConfigError: for a minute no node was there that could do it.
        """
        ray, fits = self._ray, time.monotonic()
        while True:
            ended, _ = ray.wait(list(self._under_way), num_returns=1, timeout=LOOK)
            self._look()
            if ended:
                break
            if self._now:
                fits = time.monotonic()
            elif time.monotonic() - fits > STARVED:
                raise ConfigError(
                    f"cluster: for {STARVED:.0f} s no node had {self._asked()}; {self._nodes_say()}; what is finished "
                    "is kept"
                )
        name = self._under_way.pop(ended[0])
        try:
            failure = ray.get(ended[0])
        except ray.exceptions.RayTaskError:
            raise  # a bug keeps its traceback
        except ray.exceptions.RayError as error:
            return name, TrainingError(
                f"its process or node was lost {RETRIES + 1} times ({type(error).__name__}), perhaps for lack of "
                "memory: fewer at once with a larger --task-cpus; what is finished is kept"
            )
        return name, None if failure is None else failure.error()

    def _look(self) -> None:
        """See which nodes are there."""
        self._nodes = [node for node in self._ray.nodes() if node["Alive"]]
        self._now = sum(places_of(node["Resources"], self._where) for node in self._nodes)
        self.places = max(self.places, self._now)

    def _asked(self) -> str:
        gpus = f" and {self._where.task_gpus:g} GPU" if self._where.task_gpus else ""
        return f"{self._where.task_cpus:g} CPU{gpus}"

    def _nodes_say(self) -> str:
        has = [
            f"{named(node)}: {node['Resources'].get('CPU', 0):g} CPU, {node['Resources'].get('GPU', 0):g} GPU"
            for node in self._nodes
        ]
        return (
            f"there are {'; '.join(has) or 'none'}: ask for less with --task-cpus and --task-gpus, or add a node"
        )

    def _check_nodes(self) -> None:
        """Let every node that may get work say that it is like this one, before anything is started."""
        ray = self._ray
        strategies: Any = importlib.import_module("ray.util.scheduling_strategies")
        asked = {}
        for node in self._nodes:
            if places_of(node["Resources"], self._where):
                there = strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                probe = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(attempt)
                asked[probe.remote(arrive, (self._site,))] = named(node)
        answered, late = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER)
        for reference in answered:
            try:
                failure = ray.get(reference)
            except (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError):
                continue  # it has just come or gone; before its first piece of work it is checked all the same
            except ray.exceptions.RayError as error:
                raise ConfigError(
                    f"cluster: node {asked[reference]} cannot run sdb ({str(error).splitlines()[-1]}); install the "
                    "same version there"
                ) from error
            if failure is not None:
                raise failure.error()
        if late:
            raise ConfigError(
                f"cluster: node {asked[late[0]]} did not answer in {ANSWER:.0f} s; remove or mend it"
            )


@contextlib.contextmanager
def connected(address: str) -> Generator[Any]:
    """The module ray, connected to a cluster; a connection that was there already is used and kept.

    Raises:
        MissingExtraError: ray is not installed.
        ConfigError: there is no cluster at the address, or it does not let us in.
    """
    # What Ray says of lost nodes, and what nodes print, would go to our stdout; Ray reads this when it is imported.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise MissingExtraError("ray", "ray", "a cluster") from None
    if ray.is_initialized():
        yield ray
        return
    reach(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        remedy = (
            "begin one with `ray start --head`, or name its address"
            if address == "auto"
            else "is it Ray of the same version, and is its token in RAY_AUTH_TOKEN, with RAY_AUTH_MODE=token?"
        )
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"cluster: {address!r} cannot be joined ({said}); {remedy}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def reach(address: str) -> None:
    """Say at once that nobody is there; Ray takes minutes.

    Raises:
        ConfigError: the address is none, or nobody answers.
    """
    place = host_and_port(address)
    if place is None:
        return
    try:
        socket.create_connection(place, timeout=REACH).close()
    except OSError as error:
        raise ConfigError(
            f"cluster: nobody answers at {address!r} ({error}); is it up, and is that its port?"
        ) from None


@contextlib.contextmanager
def same_site(folders: Sequence[Path]) -> Generator[Site]:
    """What this process's place is like, with a token in each folder for as long as it is needed."""
    code, token = environment(), secrets.token_hex(8)
    files = [folder.resolve() / f".sdb-cluster-{token}" for folder in dict.fromkeys(folders)]
    variables = [("SDB_DATA", os.environ["SDB_DATA"])] if "SDB_DATA" in os.environ else []
    try:
        for file in files:
            write_atomic(file, token.encode())
        versions = tuple((name, code[name]) for name in ("sdb", "commit", "torch"))
        yield Site(versions, str(Path.cwd()), tuple((str(file), token) for file in files), tuple(variables))
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def without_gpu(site: Site) -> Site:
    """The same, where work sees no GPU; Ray leaves them all visible to work that asked for none."""
    return replace(site, variables=(*site.variables, ("CUDA_VISIBLE_DEVICES", "")))


def settle(site: Site) -> None:
    """Make this process of a node like the one that it works for.

    Raises:
        ConfigError: it has another version, or does not see the same folder.
    """
    code = environment()
    if other := [f"{name} {code[name]} (here {value})" for name, value in site.versions if code[name] != value]:
        raise ConfigError(f"has {', '.join(other)}: install the same there")
    for file, token in site.tokens:
        path = Path(file)
        if not path.is_file() or path.read_text() != token:
            raise ConfigError(f"does not see {path.parent}: a shared folder under the same path is needed")
    try:
        os.chdir(site.folder)
    except OSError as error:
        raise ConfigError(
            f"has no {site.folder} ({error.strerror}): a shared folder under the same path is needed"
        ) from None
    os.environ.update(site.variables)
    keep_freed_memory()
    torch.set_num_threads(1)


@functools.cache
def arrive(site: Site) -> None:
    """Once a process: settle, and from now on end with the node that it belongs to.

    Raises:
        ConfigError: as `settle`, with the node's name.
    """
    try:
        settle(site)
    except ConfigError as error:
        raise ConfigError(f"cluster: node {socket.gethostname()} {error}") from None
    threading.Thread(target=_leave_with_node, args=(os.getppid(),), daemon=True).start()


def _leave_with_node(node: int) -> None:
    """End this process when the node's own is gone; Ray leaves it at work, beside whoever does the work again."""
    while os.getppid() == node:
        time.sleep(1)
    os._exit(1)


def serve(site: Site, call: Callable[..., None], arguments: tuple[Any, ...]) -> Failure | None:
    """Do a piece of work on a node; the process is checked first, since nodes may join at any time."""
    if (failure := attempt(arrive, (site,))) is not None:
        return failure
    began = time.monotonic()
    while True:
        failure = attempt(call, arguments)
        held = failure is not None and issubclass(failure.kind, RunExistsError)
        # A process of a lost node may live a little longer, or its lock may, and holds its folder as long.
        if not held or time.monotonic() - began > HELD:
            return failure
        time.sleep(1)


def places_of(resources: dict[str, float], where: Where) -> int:
    """How many pieces of work a node can do at once."""
    shares = [resources.get("CPU", 0) / where.task_cpus]
    if where.task_gpus:
        shares.append(resources.get("GPU", 0) / where.task_gpus)
    return math.floor(min(shares) + 1e-6)  # three times 0.1 is not quite 0.3


def named(node: dict[str, Any]) -> str:
    """A node, as people know it."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
