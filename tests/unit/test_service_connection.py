"""The parts of uvicorn that our connection builds on are there, and its version is bounded."""

import asyncio
import inspect
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")

import uvicorn
from packaging.requirements import Requirement
from uvicorn.protocols.http import httptools_impl
from uvicorn.server import ServerState

from sdb.service.connection import Connection, connection_class

CALLED = {"connection_made", "connection_lost", "data_received", "on_message_begin", "on_headers_complete", "on_body",
          "on_message_complete", "shutdown", "send_400_response"}  # fmt: skip
READ = {"transport", "loop", "cycle"}
READ_OF_A_CYCLE = {"response_complete", "keep_alive"}


async def missing(base, cycle):
    """The parts that a base class, or its request's cycle, lacks or takes other arguments for."""
    gone = set()
    for name in CALLED:
        ours, theirs = (getattr(kind, name, None) for kind in (Connection, base))
        if theirs is None or list(inspect.signature(ours).parameters) != list(
            inspect.signature(theirs).parameters
        ):
            gone.add(name)
    made = base(uvicorn.Config(lambda: None, ws="none"), ServerState(), {})
    gone |= {name for name in READ if not hasattr(made, name)}
    return gone | READ_OF_A_CYCLE - set(cycle.__init__.__code__.co_names)


def test_the_parts_that_it_uses_are_there_and_are_looked_for():
    base, cycle = httptools_impl.HttpToolsProtocol, httptools_impl.RequestResponseCycle
    assert asyncio.run(missing(base, cycle)) == set()
    assert {
        name for name in vars(Connection) if hasattr(base, name) and inspect.isfunction(vars(Connection)[name])
    } == CALLED

    def gentler(self, seconds):
        pass

    assert asyncio.run(missing(type("Next", (base,), {"shutdown": gentler, "on_body": None}), cycle)) == {
        "shutdown",
        "on_body",
    }
    assert asyncio.run(missing(base, type("Next", (), {"__init__": lambda self: None}))) == READ_OF_A_CYCLE


def test_uvicorn_s_version_is_bounded_and_the_installed_one_within():
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (wanted,) = [one for one in map(Requirement, extras["serve"]) if one.name == "uvicorn"]
    assert {one.operator for one in wanted.specifier} == {">=", "<"}
    assert metadata.version("uvicorn") in wanted.specifier


def test_each_server_has_its_own_time_limit():
    assert (connection_class(0.5).read_timeout, connection_class(3).read_timeout) == (0.5, 3)
