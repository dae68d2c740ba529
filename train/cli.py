"""The one grammar of every script here: `NAME.py [PRESET.yaml] [--field value ...]`.

A script has one dataclass of settings, the only home of its defaults. A preset holds a named run: a mapping of fields, or one
such mapping under the name of each script that shares the file. Flags beat the preset. An unknown key is an error that names
the nearest known one. The last line on stdout is the result as one JSON object; everything else goes to stderr. Bad settings or
input end with one line on stderr and exit status 2.
"""

import dataclasses
import difflib
import json
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path

import yaml


class InputError(Exception):
    """Bad settings or input; its text is one clear line that says where and what to do."""


def setting(default=dataclasses.MISSING, help: str = "", choices: tuple = ()):
    """A documented field of a settings dataclass; without `default` it has to be given."""
    metadata = {"help": help, "choices": choices}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def convert(value, kind, where: str):
    """`value`, as YAML gives it, as the annotated type `kind`.

    Raises:
        InputError: it cannot be, naming `where`.
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
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return build(kind, value, where)
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    if kind in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)
            if kind is float or number.is_integer():
                return kind(number) if kind is float or not isinstance(value, int) else value
        except (TypeError, ValueError, OverflowError):
            pass
    name = getattr(kind, "__name__", str(kind))
    raise InputError(f"{where}: expected {name}, got {value!r}")


def build(settings_class: type, values: dict, where: str):
    """An instance of the dataclass from a plain mapping, every key and type checked."""
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
        choices = field.metadata.get("choices")
        if choices and converted.get(name, field.default) not in choices:
            raise InputError(f"{where}: {name} is {converted[name]!r}; it must be one of {', '.join(map(repr, choices))}")
    return settings_class(**converted)


def read_yaml(path: str | Path) -> dict:
    """The mapping in a YAML file.

    Raises:
        InputError: it is missing, not UTF-8, not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: a preset is a mapping of settings, this is {type(values).__name__}")
    return values


def preset_values(path: str, script: str) -> dict:
    """The settings for `script` in a preset: the whole mapping, or the section of that name where all are sections."""
    values = read_yaml(path)
    if values and all(isinstance(section, dict) for section in values.values()):
        known = {source.stem for folder in ("train", "eval") for source in (Path(__file__).parents[1] / folder).glob("*.py")}
        for section in values:
            if section not in known:
                near = difflib.get_close_matches(section, known, n=1, cutoff=0.0)[0]
                raise InputError(f"{path}: unknown section {section!r}; the nearest script is {near!r}")
        if script not in values:
            raise InputError(f"{path}: no section for {script}; it has {', '.join(values)}")
        return values[script]
    return values


def parse(settings_class: type, arguments: list[str], script: str):
    """Settings from `[PRESET.yaml] [--field value ...]`.

    Raises:
        InputError: see the module's docstring.
    """
    arguments = list(arguments)
    values, where = {}, script
    if arguments and not arguments[0].startswith("--"):
        where = arguments.pop(0)
        values = preset_values(where, script)
    fields = {field.name for field in dataclasses.fields(settings_class)}
    while arguments:
        flag = arguments.pop(0)
        if not flag.startswith("--"):
            raise InputError(f"{script}: unexpected argument {flag!r}; the form is [PRESET.yaml] [--field value ...]")
        name, has_value, inline = flag[2:].partition("=")
        given = [inline] if has_value else []
        while not has_value and arguments and not arguments[0].startswith("--"):
            given.append(arguments.pop(0))
        name = name.replace("-", "_")
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1, cutoff=0.0)
            raise InputError(f"{script}: unknown flag --{name}; the nearest known one is --{near[0]}")
        if not given:
            raise InputError(f"{script}: --{name} needs a value")
        kind = typing.get_type_hints(settings_class)[name]
        plain = kind is str or typing.get_args(kind) in ((str,), (str, types.NoneType))
        try:
            parsed = given if plain else [yaml.safe_load(text) for text in given]
        except yaml.YAMLError as error:
            raise InputError(f"{script}: --{name} has a value that cannot be read: {' '.join(given)!r}") from error
        values[name] = parsed if len(parsed) > 1 else parsed[0]
    return build(settings_class, values, where)


def usage(settings_class: type, script: str, description: str) -> str:
    lines = [description.strip(), "", f"usage: {script}.py [PRESET.yaml] [--field value ...]", ""]
    for field in dataclasses.fields(settings_class):
        kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
        if field.default is not dataclasses.MISSING:
            default = f"default {field.default!r}"
        else:
            default = "required" if field.default_factory is dataclasses.MISSING else "default empty"
        choices = field.metadata.get("choices")
        lines.append(f"  --{field.name} ({kind}{': ' + ', '.join(choices) if choices else ''}; {default})")
        lines.append(f"      {field.metadata.get('help', '')}")
    return "\n".join(lines)


def run(main: Callable, settings_class: type) -> None:
    """What every script does under `if __name__ == "__main__"`: parse, run, print the result as JSON."""
    module = sys.modules[main.__module__]
    script = Path(module.__file__).stem
    arguments = sys.argv[1:]
    if arguments[:1] in (["-h"], ["--help"]):
        print(usage(settings_class, script, module.__doc__ or ""))
        return
    try:
        result = main(parse(settings_class, arguments, script))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if result is not None:
        print(json.dumps(result, ensure_ascii=False))
