"""Reads recipes: a YAML file, its base and dotted overrides become one checked pydantic config.

    base: m6-small.yaml          # optional: read first, relative to this file; mappings merge, all else replaces
    optimizer: {lr: 3e-4}

    load_recipe(Path("openm6/configs/quickstart.yaml"), ["optimizer.lr=1e-3", "data.0.weight=2"], TrainConfig)

YAML follows the rules of YAML 1.2, which most people expect: only true and false are booleans (`no` is a word),
3e-4 is a number, and a date is text. A repeated key is an error. Types are strict: "3" is not a number, and 1 is
not a boolean.
"""

import difflib
import json
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from openm6.data.atomic import replacing

Config = TypeVar("Config", bound=BaseModel)

# -------------------- YAML


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.value in seen:
                problem = f"the key {key_node.value!r} stands twice or is not plain text"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key_node.value)
        # Keys are text even if they look like numbers, as in JSON.
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


# Both sides resolve plain words by the same rules: the dumper quotes exactly what would not come back.
for _side in (_Loader, _Dumper):
    _side.yaml_implicit_resolvers = {}
    for _tag, _pattern, _first in (
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("int", r"[-+]?(0|[1-9][0-9_]*)", "-+0123456789"),
        (
            "float",
            r"[-+]?([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+"
            r"|[-+]?([0-9][0-9_]*\.[0-9]*|\.[0-9]+)|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
            "-+.0123456789",
        ),
    ):
        _side.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), list(_first)
        )


def _parse(text: str, where: str) -> Any:
    try:
        value = yaml.load(text, _Loader)
        json.dumps(value)
        return value
    except TypeError:  # an explicit tag such as !!binary
        raise ValueError(
            f"{where}: a recipe holds only text, numbers, true, false, null, lists and mappings."
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ValueError(f"{where}{place}: this is not valid YAML: {problem}.") from None


def _merge(below: Any, above: Any) -> Any:
    """`above` merged over `below`: mappings key by key, everything else replaced."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return {**below, **{key: _merge(below.get(key), value) for key, value in above.items()}}


def _read_layers(path: Path, via: tuple[Path, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """(file name, content without `base`) of the recipe and of all recipes that it inherits from, the most basic
    first.
    """
    asked = f", which {via[-1]} names as its base," if via else ""
    if path.resolve() in [earlier.resolve() for earlier in via]:
        raise ValueError(f"the recipe {path} is its own base (by way of {via[-1]}); remove one `base` key.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"the recipe {path}{asked} is not UTF-8 text.") from None
    except OSError as error:
        raise ValueError(f"the recipe {path}{asked} cannot be read: {error.strerror}.") from None
    content = _parse(text, str(path))
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a recipe must be a mapping of keys to values, not {_show(content)}.")
    base = content.pop("base", None)
    below = []
    if base is not None:
        if not isinstance(base, str):
            raise ValueError(f"{path}: 'base' must be the name of a recipe file, not {_show(base)}.")
        below = _read_layers(path.parent / base, (*via, path))
    return [*below, (str(path), content)]


# -------------------- overrides


def _override(data: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set the dotted `key`. Missing mappings on the way are made; list entries must exist."""
    parts = key.split(".")
    node: Any = data
    for depth, part in enumerate(parts):
        here = ".".join(parts[:depth])
        last = depth == len(parts) - 1
        if isinstance(node, list):
            if not (part.isdecimal() and int(part) < len(node)):
                raise ValueError(
                    f"{where}: {here!r} is a list of {len(node)} entries, counted from 0; it has no {part!r}."
                )
            index: Any = int(part)
        elif isinstance(node, dict):
            index = part
        else:
            raise ValueError(f"{where}: {here!r} is {_show(node)}, not a mapping or a list.")
        if last:
            node[index] = value
        elif isinstance(node, dict) and node.get(index) is None:
            node[index] = {}
        node = node[index]


# -------------------- error messages


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _members(annotation: Any) -> Iterator[Any]:
    """The alternatives of a type: the members of a union, a type itself otherwise."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for argument in get_args(annotation):
            yield from _members(argument)
    else:
        yield annotation


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _tagged(model: type[BaseModel], part: Any) -> bool:
    """Whether pydantic means this member of a union by `part`: its class name or its discriminator's value."""
    fields = (field.annotation for field in model.model_fields.values())
    return part == model.__name__ or any(
        part in get_args(annotation) for annotation in fields if get_origin(annotation) is Literal
    )


def _keys_at(schema: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """The keys that a config may have at a pydantic error location."""
    now: list[Any] = [schema]
    for part in location:
        below: list[Any] = []
        for annotation in now:
            origin, arguments = get_origin(annotation), get_args(annotation)
            if _is_model(annotation) and part in annotation.model_fields:
                below += _members(annotation.model_fields[part].annotation)
            elif isinstance(origin, type) and issubclass(origin, Mapping):
                below += _members(arguments[1])
            elif isinstance(origin, type) and issubclass(origin, Iterable) and isinstance(part, int):
                below += [member for argument in arguments for member in _members(argument)]
        now = below or [m for m in now if _is_model(m) and _tagged(m, part)] or now
    return [key for model in now if _is_model(model) for key in model.model_fields]


def _all_keys(schema: type[BaseModel], prefix: str = "", above: tuple[Any, ...] = ()) -> Iterator[str]:
    for key, field in schema.model_fields.items():
        yield prefix + key
        for member in _members(field.annotation):
            if _is_model(member) and member not in (*above, schema):
                yield from _all_keys(member, f"{prefix}{key}.", (*above, schema))


def _dotted(data: Any, error: Mapping[str, Any]) -> list[str]:
    """The keys that lead to an error. Names that pydantic adds for a member of a union are left out."""
    parts = []
    for part in error["loc"]:
        if isinstance(data, list) and isinstance(part, int):
            parts.append(str(part))
            data = data[part]
        elif isinstance(data, dict) and str(part) in data:
            parts.append(str(part))
            data = data[str(part)]
    if error["type"] == "missing":
        parts.append(str(error["loc"][-1]))
    return parts


def _has(data: Any, parts: Sequence[str]) -> bool:
    for part in parts:
        if isinstance(data, list) and part.isdecimal() and int(part) < len(data):
            data = data[int(part)]
        elif isinstance(data, dict) and part in data:
            data = data[part]
        else:
            return False
    return True


_WORDS = {
    "a valid array": "a list",
    "an object": "a mapping",
    "a valid dictionary": "a mapping",
    "a valid boolean": "true or false",
}


def _unknown_key(schema: type[BaseModel], location: Sequence[Any], parts: list[str]) -> str:
    key, beside = parts[-1], _keys_at(schema, location[:-1])
    nearest = difflib.get_close_matches(key, beside, n=1)
    elsewhere = [
        other for other in _all_keys(schema) if other.split(".")[-1] == key and other != ".".join(parts)
    ]
    prefix = ".".join(parts[:-1])
    if nearest:
        hint = f"did you mean {'.'.join([*parts[:-1], nearest[0]])!r}?"
    elif elsewhere:
        hint = f"did you mean {elsewhere[0]!r}?"
    else:
        hint = f"known keys{f' in {prefix!r}' if prefix else ''} are {', '.join(beside) or 'none'}."
    return f"unknown key {'.'.join(parts)!r}; {hint}"


def _sentence(error: ValidationError, schema: type[BaseModel], data: Any) -> tuple[list[str], str]:
    """(keys that lead to the error, a sentence) for the most useful of pydantic's errors."""
    errors = error.errors(include_url=False)
    # A misspelt required key shows as "unknown" and as "missing": the first says more.
    first = min(errors, key=lambda e: e["type"] != "extra_forbidden")
    parts = _dotted(data, first)
    key = ".".join(parts)
    if first["type"] == "extra_forbidden":
        return parts, _unknown_key(schema, first["loc"], parts)
    if first["type"] == "missing":
        return parts, f"the key {key!r} is missing and has no default."
    start = "Input should be "
    # A union says what each of its members expected.
    same = [e["msg"] for e in errors if _dotted(data, e) == parts]
    if all(message.startswith(start) for message in same):
        expected = [message.removeprefix(start) for message in same]
        wanted = " or ".join(dict.fromkeys(_WORDS.get(text, text) for text in expected))
        return parts, f"{key!r} must be {wanted}, not {_show(first['input'])}."
    message = re.sub(r"^(Value error|Assertion failed), ", "", first["msg"]).rstrip(".")
    return parts, f"{key!r}: {message}." if key else f"{message}."


# -------------------- the functions


def load_recipe(path: Path, overrides: Sequence[str], schema: type[Config]) -> Config:
    """Read a recipe into `schema`.

    Args:
        path: the YAML file; its optional key `base` names another to inherit from.
        overrides: "a.b=c" each, applied in order over the file. The value is YAML and replaces the old value.
            `data.0.weight=2` reaches into a list.

    Raises:
        ValueError: a file is missing, unreadable or not YAML, or a key is unknown (the message names the nearest
            right key), missing or ill-typed. The message is one sentence that names the file or override, the
            dotted key and the expected value.
    """
    layers = _read_layers(Path(path))
    data: Any = {}
    for _, content in layers:
        data = _merge(data, content)
    data = json.loads(json.dumps(data))  # a deep copy: layers stay what the files say, for the messages below

    applied: list[tuple[str, list[str]]] = []
    for override in overrides:
        key, equals, value = override.partition("=")
        where = f"the override {override!r} of {path}"
        if not equals or not all(key.split(".")):
            raise ValueError(f"{where} must have the form key.subkey=value.")
        _override(data, key, _parse(value, where), where)
        applied.append((where, key.split(".")))

    try:
        return schema.model_validate_json(json.dumps(data), strict=True, extra="forbid")
    except ValidationError as error:
        parts, problem = _sentence(error, schema, data)
    for where, keys in reversed(applied):
        shared = min(len(keys), len(parts))
        if parts and keys[:shared] == parts[:shared]:
            raise ValueError(f"{where}: {problem}")
    file = next((name for name, content in reversed(layers) if _has(content, parts)), layers[-1][0])
    raise ValueError(f"{file}: {problem}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, by a recipe's rules, unchecked. Raises ValueError for any other content."""
    try:
        content = _parse(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: there must be a mapping of keys to values, not {_show(content)}.")
    return content


def dump_recipe(config: BaseModel, path: Path) -> None:
    """Write the resolved config as YAML, atomically. `load_recipe` reads back an equal config."""
    content = config.model_dump(mode="json", round_trip=True)
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")
