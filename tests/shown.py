"""What the pages of this project show: their blocks of code, and the commands in them."""

import importlib
import re
import shlex

from zh_modernbert.train.common import cli

SCRIPT = re.compile(r"(train|eval)/(\w+)\.py")


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of each block, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def commands(block: str) -> list[str]:
    """Every command of a block that runs a script, as one line; a loop's variable has its first value."""
    block = block.replace("\\\n", " ")
    for name, value in re.findall(r"^for (\w+) in (\S+)", block, re.MULTILINE):
        block = block.replace(f"${name}", value)
    return [part.strip() for line in block.splitlines() for part in line.split("&&") if SCRIPT.search(part)]


def parse(command: str):
    """The module of the command's script, and the settings that the script would have.

    Raises:
        InputError: the script does not understand the command.
    """
    words = shlex.split(command, comments=True)
    place = next(i for i, word in enumerate(words) if SCRIPT.fullmatch(word))
    folder, name = SCRIPT.fullmatch(words[place]).groups()
    script = importlib.import_module(f"zh_modernbert.{folder}.{name}")
    return script, cli.parse(script.Settings, words[place + 1 :], name)
