"""The one grammar of every script here: `NAME.py [PRESET.yaml] [--field value ...]`.

A script has one dataclass of settings, the only home of its defaults. A preset is a mapping of fields. A preset that several
scripts share has one such mapping under the name of each. Flags beat the preset. An unknown key is an error that names the
nearest known one. A value is text until the type of its field says what it is, so that 20:00:00, 010 and no are what was typed.
The last line on stdout is the result as one JSON object; everything else goes to stderr. Bad settings or input end with one
line on stderr and exit status 2.
"""

import dataclasses
import difflib
import json
import math
import os
import re
import sys
import time
import types
import typing
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import yaml

FORM = "[PRESET.yaml] [--field value ...]"


class InputError(Exception):
    """Bad settings or input; its text is one clear line that says where and what to do."""


def one_line(error: Exception | str) -> str:
    """The text of another library's error, for the line of an `InputError`: on one line, at most 300 characters."""
    return " ".join(str(error).split())[:300]


def describe(error: Exception) -> str:
    """Kind and text of another library's error, as `one_line`: some of their texts say nothing alone."""
    return one_line(f"{type(error).__name__}: {error}")


def setting(default=dataclasses.MISSING, help: str = "", choices: tuple = (), least=None, most=None, running=False) -> Any:
    """A documented field of a settings dataclass. A field without `default` must be given.

    Args:
        choices: the values that the field may have; of a list, the values of its items.
        least, most: bounds of a number, or of each number of a list.
        running: the field says how and where the work is done, and has no influence on the output.
    """
    metadata = {"help": help, "choices": choices, "least": least, "most": most, "running": running}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def recipe_of(settings) -> dict:
    """The settings that decide what the output is: all but those marked as `running`."""
    fields = dataclasses.fields(settings)
    kept = {field.name for field in fields if not field.metadata.get("running")}
    return {name: value for name, value in dataclasses.asdict(settings).items() if name in kept}


def script_name(settings) -> str:
    """The name of the script that defines a settings class or the class of an instance. `__main__` has its file's name, too."""
    kind = settings if isinstance(settings, type) else type(settings)
    return Path(sys.modules[kind.__module__].__file__ or "").stem


@dataclasses.dataclass
class BaseSettings:
    """Base of every settings dataclass. Each instance is checked, from a preset, from flags or made in Python.

    Raises:
        InputError: a value is none of its field's choices, out of its bounds, or text of several lines, naming script and
            field. Text goes into headers and tables, where a second line would be another entry.
    """

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            choices, least, most = (field.metadata.get(key) for key in ("choices", "least", "most"))
            items = value if isinstance(value, list) else [*value, *value.values()] if isinstance(value, dict) else [value]
            for item in items:
                where = f"{script_name(self)}: {field.name} is {item!r}; it must be"
                if choices and item not in choices:
                    raise InputError(f"{where} one of {', '.join(map(repr, choices))}")
                if isinstance(item, str) and item.splitlines() not in ([], [item]):
                    raise InputError(f"{where} one line")
                if least is not None and item < least:
                    raise InputError(f"{where} at least {least}")
                if most is not None and item > most:
                    raise InputError(f"{where} at most {most}")


# Decimal, in ASCII, without leading zeros: YAML 1.1 reads 010 as 8, YAML 1.2 as 10.
NUMBER = re.compile(r"[-+]?(0|[1-9][0-9_]*)?(\.[0-9_]*)?([eE][-+]?[0-9]+)?")
TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def parse_number(text: str, kind: type) -> int | float | None:
    """The number that a text is, of type `kind`; None where it is none, or not finite."""
    try:
        number = float(text) if NUMBER.fullmatch(text) else math.nan
        if kind is float:
            return number if math.isfinite(number) else None
        if number.is_integer():
            return int(number) if set(text) & set(".eE") else int(text)  # exact beyond 2**53
    except ValueError:
        pass
    return None


def convert(value, kind, where: str):
    """A value that `load_yaml` gave, converted to the annotated type `kind`.

    Raises:
        InputError: the value is not of that type, naming `where`.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        failures = []
        for option in arguments:
            if option is not type(None):
                try:
                    return convert(value, option, where)
                except InputError as error:
                    failures.append(error)
        raise failures[-1]
    if origin is list:
        items = value if isinstance(value, list) else [value]
        return [convert(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(items)]
    if origin is dict and isinstance(value, dict):
        return {str(key): convert(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return settings_from(kind, value, where)
    if isinstance(value, str):
        if kind is str:
            return value
        if kind is bool and value.lower() in TRUTH:
            return TRUTH[value.lower()]
        if kind in (int, float) and (number := parse_number(value, kind)) is not None:
            return number
    raise InputError(f"{where}: expected {getattr(kind, '__name__', str(kind))}, got {value!r}")


def settings_from(settings_class: type, values: dict, where: str):
    """An instance of the dataclass from a plain mapping.

    Raises:
        InputError: a key is unknown or missing, or a value has the wrong type, naming `where`.
    """
    hints = typing.get_type_hints(settings_class)
    fields = {field.name: field for field in dataclasses.fields(settings_class)}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.0)
            raise InputError(f"{where}: unknown key {key!r}; the nearest known one is {near[0]!r}")
    converted = {key: convert(value, hints[key], f"{where}: {key}") for key, value in values.items()}
    for name, field in fields.items():
        missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if missing and name not in converted:
            raise InputError(f"{where}: {name} is missing; give --{name} or put it in the preset")
    return settings_class(**converted)


class StrictLoader(yaml.SafeLoader):
    """YAML whose scalars are text or null, and in which a repeated key is an error.

    By YAML 1.1, 1:30 would be 90, 010 would be 8 and no would be false; and the last one of repeated keys would win silently.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"the key {key!r} stands twice in one mapping, from line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


def load_yaml(text: str, where: str):
    """The value of a YAML text.

    Raises:
        InputError: the text is not YAML, naming `where`.
    """
    try:
        return yaml.load(text, StrictLoader)  # a SafeLoader: plain values only
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{where}: not valid YAML: {one_line(error)}") from error


def read_yaml(path: str | Path) -> dict:
    """The mapping in a YAML file.

    Raises:
        InputError: the file is missing, not UTF-8, not YAML, or not a mapping.
    """
    try:
        values = load_yaml(Path(path).read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not valid YAML: not UTF-8") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: a preset is a mapping of settings, this is {type(values).__name__}")
    return values


def preset_values(path: str, script: str, fields: Collection[str]) -> dict:
    """The settings for `script` in a preset. If every value is a mapping, these are sections, and the script has one of them.

    Args:
        fields: the script's own. A preset with no other keys has no sections: `mixture` alone is a mapping, too.

    Raises:
        InputError: a section belongs to no script, or this script has none; or as `read_yaml`.
    """
    values = read_yaml(path)
    sections = [section for section in values.values() if section is not None]
    if sections and all(isinstance(section, dict) for section in sections) and not values.keys() <= set(fields):
        known = {source.stem for folder in ("train", "eval") for source in (Path(__file__).parents[2] / folder).glob("*.py")}
        for section in values:
            if section not in known:
                near = difflib.get_close_matches(str(section), [*known, *fields], n=1, cutoff=0.0)[0]
                raise InputError(f"{path}: unknown section or key {section!r}; the nearest known one is {near!r}")
        if script not in values:
            raise InputError(f"{path}: no section for {script}; it has {', '.join(values)}")
        return values[script] or {}
    return values


def parse(settings_class: type, arguments: list[str], script: str):
    """Settings from the arguments.

    Raises:
        InputError: the arguments have another form, a flag is unknown, given twice or has no value; or as `preset_values` and
            `settings_from`.
    """
    arguments = list(arguments)
    values, where = {}, script
    hints, given = typing.get_type_hints(settings_class), set()
    if arguments and not arguments[0].startswith("--"):
        where = arguments.pop(0)
        values = dict(preset_values(where, script, hints))
    while arguments:
        flag = arguments.pop(0)
        if not flag.startswith("--"):
            raise InputError(f"{script}: unexpected argument {flag!r}; the form is {FORM}")
        name, has_value, inline = flag[2:].partition("=")
        texts = [inline] if has_value else []
        while not has_value and arguments and not arguments[0].startswith("--"):
            texts.append(arguments.pop(0))
        name = name.replace("-", "_")
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1, cutoff=0.0)
            raise InputError(f"{script}: unknown flag --{name}; the nearest known one is --{near[0]}")
        if name in given:
            raise InputError(f"{script}: --{name} is given twice; give a list as --{name} A B")
        if not texts:
            raise InputError(f"{script}: --{name} needs a value")
        given.add(name)
        parsed = [flag_value(text, hints[name], f"{script}: --{name}") for text in texts]
        values[name] = parsed if len(parsed) > 1 else parsed[0]
    return settings_from(settings_class, values, where)


def types_in(kind) -> set:
    """A type and the types it is made of: list, str and int of `list[str | int]`."""
    return {typing.get_origin(kind) or kind}.union(*map(types_in, typing.get_args(kind)))


def flag_value(text: str, kind, where: str):
    """What the text of a flag means for a field of type `kind`.

    A field that takes text gets it as it was typed: 007 stays 007. `null` is None for a field that may be None. Text in braces
    is a YAML mapping for a field that takes one. The text for all other fields is YAML.
    """
    types = types_in(kind)
    takes_mapping = dict in types or any(map(dataclasses.is_dataclass, types))
    if text == "null" and type(None) in types:
        return None
    if str in types and dict not in types and not (takes_mapping and text.startswith("{")):
        return text
    return load_yaml(text, f"{where} {text}")


def usage(settings_class: type, script: str, description: str) -> str:
    lines = [description.strip(), "", f"usage: {script}.py {FORM}", ""]
    for field in dataclasses.fields(settings_class):
        kind = field.type.__name__ if isinstance(field.type, type) and not typing.get_args(field.type) else str(field.type)
        if field.default_factory is not dataclasses.MISSING:
            default = f"default {field.default_factory()!r}"
        else:
            default = "required" if field.default is dataclasses.MISSING else f"default {field.default!r}"
        choices = field.metadata.get("choices")
        lines.append(f"  --{field.name} ({kind}{': ' + ', '.join(choices) if choices else ''}; {default})")
        lines.append(f"      {field.metadata.get('help', '')}")
    return "\n".join(lines)


def leave_script_folder() -> None:
    """Takes the folder of a script that is run by its path off `sys.path`, where Python puts it first.

    With it, `import common` and `import tokenizer` would find the rooms of this project, from anybody's code.
    """
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script and Path(sys.path[0]).resolve() == Path(script).resolve().parent:
        del sys.path[0]


def open_closed_streams() -> None:
    """Gives a process that was started without stdin, stdout or stderr the null device in their place.

    Otherwise the next file that it opens would take the place, and what any library prints would be written into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    sys.stdout, sys.stderr = sys.stdout or open(1, "w"), sys.stderr or open(2, "w")  # noqa: SIM115


# Seconds. All processes of a run find the same error. The first of a machine reports it; the others wait, until the launcher
# ends them.
SECONDS_BEFORE_REPEATING = 5.0


def write_stdout(text: str) -> None:
    """Prints to stdout; ends the process with one line where nobody reads stdout any more, or it cannot be written."""
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries again at its end
        print(f"error: stdout: {error.strerror}; the work itself is done", file=sys.stderr)
        sys.exit(2)


def run(main: Callable, settings_class: type) -> None:
    """What every script does under `if __name__ == "__main__"`: parse, run, print the result as JSON."""
    open_closed_streams()
    leave_script_folder()
    module = sys.modules[main.__module__]
    script = script_name(settings_class)
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        write_stdout(usage(settings_class, script, module.__doc__ or ""))
        return
    try:
        result = main(parse(settings_class, arguments, script))
    except (InputError, OSError) as error:
        if not isinstance(error, InputError) and error.filename is None:
            raise  # no file of the user's is to blame
        text = error if isinstance(error, InputError) else f"{error.filename}: {error.strerror}"
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(SECONDS_BEFORE_REPEATING)
        print(f"error: {text}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    if result is not None:
        try:
            write_stdout(json.dumps(result, ensure_ascii=False))
        except UnicodeEncodeError:  # stdout has another encoding, or a file's name is not UTF-8
            write_stdout(json.dumps(result))
