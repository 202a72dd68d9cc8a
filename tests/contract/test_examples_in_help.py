"""Every command's help ends with an example, whose options the command has."""

import shlex

import pytest
import typer.main

from sdb.cli import app
from sdb.cli.examples import EXAMPLES

COMMANDS = typer.main.get_command(app).commands  # ty: ignore[unresolved-attribute]


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if not hasattr(command, "commands")])
def test_an_example_that_its_command_takes(name):
    command = COMMANDS[name]
    assert command.epilog == f"Example: {EXAMPLES[name]}"
    words = shlex.split(EXAMPLES[name])
    assert words[:2] == ["sdb", name]
    command.make_context(name, words[2:])  # parses the words, and runs nothing
