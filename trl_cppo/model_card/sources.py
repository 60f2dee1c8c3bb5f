# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a model was made from, as far as this machine knows it without asking the Hub: base model, licence, data sets."""

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from datasets import Dataset
from huggingface_hub import metadata_load, try_to_load_from_cache
from transformers import PretrainedConfig
from trl.trainer.utils import get_config_model_id

from .text import is_hub_id

_SNAPSHOT = re.compile(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\][^/\\]+[/\\]?$")


@dataclass
class BaseModel:
    """
    Where training began.

    Args:
        hub_id (`str`, *optional*): the base model, or the nearest model on the Hub that a local one comes from.
        is_local (`bool`): whether training began from a local folder.
        licence (`dict[str, str]`): `license`, `license_name`, `license_link`, as far as its own card says.
    """

    hub_id: str | None = None
    is_local: bool = False
    licence: dict[str, str] = field(default_factory=dict)


def find_base_model(config: PretrainedConfig) -> BaseModel:
    """What a model's configuration tells of its origin: never a Hub id that is only guessed from a path."""
    name = get_config_model_id(config)
    if not name:  # built from a configuration
        return BaseModel()
    if os.path.isdir(name):
        snapshot = _SNAPSHOT.search(os.path.abspath(name))
        metadata = _metadata(Path(name) / "README.md")
        hub_id = "/".join(snapshot.groups()) if snapshot else _ancestor(Path(name), metadata)
        return BaseModel(hub_id, snapshot is None, _licence(metadata, hub_id if snapshot else None))
    # `owner/name` may as well have been a folder that is gone. What came from the Hub has a commit, or is in its cache.
    if is_hub_id(name) and (getattr(config, "_commit_hash", None) or _is_cached(name)):
        readme = try_to_load_from_cache(name, "README.md")
        return BaseModel(name, False, _licence(_metadata(readme), name))
    return BaseModel(is_local=True)


def _ancestor(folder: Path, metadata: dict[str, Any]) -> str | None:
    stated = metadata.get("base_model")
    stated = stated[0] if isinstance(stated, list) and len(stated) == 1 else stated
    if is_hub_id(stated):
        return stated
    try:
        saved = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_name_or_path")
    except (OSError, ValueError, AttributeError):
        return None
    return saved if is_hub_id(saved) and _is_cached(saved) else None


def _is_cached(hub_id: str) -> bool:
    return isinstance(try_to_load_from_cache(hub_id, "config.json"), str)


def _metadata(readme: Any) -> dict[str, Any]:
    """The metadata of a card that others wrote; empty where there is none that can be read."""
    if not isinstance(readme, (str, Path)):  # not in the cache
        return {}
    try:
        return metadata_load(readme) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _licence(metadata: dict[str, Any], hub_id: str | None) -> dict[str, str]:
    fields = ("license", "license_name", "license_link")
    licence = {name: metadata[name] for name in fields if isinstance(metadata.get(name), str)}
    file = licence.get("license_link", "https://")
    if not re.match(r"https?://", file):  # a file of the base model's repository
        del licence["license_link"]
        if hub_id is not None:
            licence["license_link"] = f"https://huggingface.co/{hub_id}/blob/main/{quote(file)}"
    return licence if "license" in licence else {}


def hub_datasets(dataset: Any, names: list[str]) -> list[str]:
    """
    The Hub ids of the training data: those among the given names, without names what the data set itself recorded.

    Args:
        dataset: the trainer's; a [`~datasets.Dataset`] that was downloaded with recorded checksums names its source.
        names (`list[str]`): what the user calls it; may be empty.
    """
    if names:
        return [name for name in names if is_hub_id(name)]
    recorded = (dataset.info.download_checksums or {}) if isinstance(dataset, Dataset) else {}
    ids = [re.match(r"hf://datasets/([^/@]+/[^/@]+)@", str(address)) for address in recorded]
    return list(dict.fromkeys(match[1] for match in ids if match and is_hub_id(match[1])))
