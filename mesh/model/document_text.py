"""YAML as documents of routes and policies are written in it: stricter than the library's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

import yaml

from mesh.model.errors import InvalidError, Violation


def load_all(text: str) -> list[object]:
    """The documents of a text, without the empty ones. Raises InvalidError where it is not YAML."""
    try:
        return [document for document in yaml.load_all(text, _Loader) if document is not None]
    except yaml.YAMLError as error:
        raise InvalidError([Violation("", f"not YAML: {error}")]) from error


def dump_all(documents: list[dict[str, object]]) -> str:
    """A text that ``load_all`` reads back to the same."""
    # ASCII only: in clear text U+0085 and U+2028 would come back as the line breaks that YAML takes them for.
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=False)


class _Loader(yaml.SafeLoader):
    """A SafeLoader that refuses a key given twice, where YAML libraries silently take the last.

    Plain scalars are read as YAML 1.2's core schema has them: a header value ``yes``, ``on`` or ``22:22`` is the
    string that stands there, not a boolean or 1342.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # type: ignore[misc] # as in yaml


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?([0-9]+\.[0-9]*([eE][-+]?[0-9]+)?|\.[0-9]+|[0-9]+[eE][-+]?[0-9]+)", "-+0123456789."),
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), list(_first))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"\Z"), [""])


class _Dumper(yaml.SafeDumper):
    """A SafeDumper that also quotes what only newer YAML takes for a number, such as ``1e3`` and ``0o17``."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"(?:[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+|0o[0-7]+)\Z"),
    list("-+0123456789."),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> Mapping[object, object]:
    seen = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, (str, int)) and key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is there twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
