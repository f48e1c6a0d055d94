"""YAML as a discovery file is written in it: no key twice, and nothing but plain values."""

from __future__ import annotations

from typing import Any

import yaml

from mesh.discovery.file_format import unique


def load(text: str) -> object:
    """The value of a text. Raises ValueError where it is not YAML, InvalidError for a key that is there twice."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - SafeLoader's subclass: other tags are refused
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses repeated keys."""


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    return unique(
        (loader.construct_object(key, deep=True), loader.construct_object(value, deep=True))
        for key, value in node.value
    )


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
