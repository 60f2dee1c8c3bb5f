# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a model was made from, as far as this machine knows it without asking the Hub: base model, licence, data set."""

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

from .markdown import escape, is_hub_id

_SNAPSHOT = re.compile(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\][^/\\]+[/\\]?$")


@dataclass
class BaseModel:
    """
    Where training began.

    Args:
        hub_id (`str`, *optional*): on the Hub.
        shown (`str`, *optional*): how the card calls it; of a local folder only the name, not the path.
        licence (`dict[str, str]`): `license`, `license_name` and `license_link`, as far as its own card says.
    """

    hub_id: str | None = None
    shown: str | None = None
    licence: dict[str, str] = field(default_factory=dict)


def find_base_model(config: PretrainedConfig, in_words: str | None = None) -> BaseModel:
    """
    What a model's configuration tells of its origin: never a Hub id that is only guessed from a path. Words for it, if there
    are some, stand in the place of a folder's name.
    """
    name = get_config_model_id(config)
    if not name:  # built from a configuration
        return BaseModel(shown=None if in_words is None else escape(in_words))
    is_local, snapshot = os.path.isdir(name), _SNAPSHOT.search(name)
    hub_id = "/".join(snapshot.groups()) if snapshot else name
    # `owner/name` may as well be a folder that is gone. What came from the Hub has a commit, or lies in its cache.
    if not snapshot and (is_local or not is_hub_id(name) or not _came_from_hub(config)):
        hub_id = None
    readme = Path(name) / "README.md" if is_local else try_to_load_from_cache(hub_id, "README.md") if hub_id else None
    shown = f"[{escape(hub_id)}](https://huggingface.co/{hub_id})" if hub_id else escape(in_words or Path(name).name)
    return BaseModel(hub_id, shown, _licence(_metadata(readme), hub_id))


def _came_from_hub(config: PretrainedConfig) -> bool:
    in_cache = try_to_load_from_cache(get_config_model_id(config), "config.json")
    return bool(getattr(config, "_commit_hash", None)) or isinstance(in_cache, str)


def _metadata(readme: Any) -> dict[str, Any]:
    """The metadata of a card that others wrote; empty where none can be read, which is no reason to lose a checkpoint."""
    if not isinstance(readme, (str, Path)):  # a mark of the cache that the file does not exist
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
    return {"license": "other", **licence} if licence else {}


def hub_dataset(dataset: Any) -> str | None:
    """The Hub id that `datasets` keeps in the addresses of the files that it read."""
    checksums = (dataset.info.download_checksums or {}) if isinstance(dataset, Dataset) else {}
    for address in checksums:
        match = re.match(r"hf://datasets/([^/@]+/[^/@]+)@", str(address))
        if match:
            return match[1]
    return None
