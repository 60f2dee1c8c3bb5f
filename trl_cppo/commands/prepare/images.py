# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Images of a data set that is prepared: where their bytes are, and whether they can be used as they are."""

import functools
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image as PILImage
from PIL import ImageOps

from ...method.image_size import limit_pixels
from ...method.views import to_rgb

MIN_SIDE = 28  # pixels; Qwen2.5-VL's patches of 14, two by two
_LONGEST_PATH = 1000  # characters; longer ones are base64


def usable_bytes(
    image: str | dict[str, Any] | None,
    root: str,
    max_pixels: int | None = None,
    min_pixels: int | None = None,
    to_rgb: Callable[[PILImage.Image], PILImage.Image] = to_rgb,
    folder: str | None = None,
    confined: bool = True,
) -> bytes:
    """
    An image's own bytes, or those of a scaled copy if its short side is below `MIN_SIDE` or its pixels are beyond a limit.

    A copy is upright and in mode RGB, as the trainer would see the image.

    Args:
        image (`str` or `dict`): a path inside of `root`, or `{"bytes": …, "path": …}` as `datasets` has it.
        root (`str`): the data set's folder; what is not in it may be in its `images.zip`.
        max_pixels, min_pixels (`int`, *optional*): as for [`limit_pixels`]; `max_pixels` wins over `MIN_SIDE`.
        to_rgb (`Callable`, *optional*): makes an RGB image of any other as the model's processor does.
        folder (`str`, *optional*): where a path is looked for first: the folder of the file that names it.
        confined (`bool`, *optional*, defaults to `True`): refuse paths that lead out of `root`.

    Raises:
        `FileNotFoundError`: if it is not there. Any other error: if it cannot be decoded; PIL raises `SyntaxError` and a
            `DecompressionBombError` of its own too.
    """
    data = image["bytes"] if isinstance(image, dict) else None
    data = data or _read_bytes(image["path"] if isinstance(image, dict) else image, root, folder or root, confined)
    with PILImage.open(io.BytesIO(data)) as picture:
        picture.load()  # a truncated image shows only here
        upright = ImageOps.exif_transpose(picture)  # as `datasets` turns what it reads
        usable = _enlarge(upright, to_rgb) if min(upright.size) < MIN_SIDE else upright
        limited = limit_pixels(usable, max_pixels, min_pixels, to_rgb)
        if limited is upright:
            return data
        # MPO: the JPEG of many phones, with further pictures behind the first
        kind = "JPEG" if picture.format in ("JPEG", "MPO") and limited is not usable else "PNG"
        return _encode(limited, kind)


def _read_bytes(path: str | None, root: str, folder: str, confined: bool) -> bytes:
    if path and path.startswith(("http://", "https://")):
        raise FileNotFoundError(f"{path} is an address: download the image and give its path")
    if path and (path.startswith("data:") or len(path) > _LONGEST_PATH):
        raise FileNotFoundError(f"{path[:40]!r}… is an image's content: write it into a file and give its path")
    inside = bool(path) and _is_inside(root, folder, path)
    if not path or (confined and not inside):
        raise FileNotFoundError(f"{path!r} is no path inside the data set's folder")
    for place in (folder, root):
        file = Path(place, path if confined else Path(path).expanduser())  # an absolute path stays what it is
        if file.is_file() and (not confined or _is_inside(root, place, path)):
            return file.read_bytes()
        if file.is_dir():
            raise IsADirectoryError(f"it is a folder in {os.path.abspath(place)}")
    if "\\" in path:  # written on Windows
        return _read_bytes(path.replace("\\", "/"), root, folder, confined)
    archive = os.path.join(root, "images.zip")
    if os.path.isfile(archive):
        members = _open_archive(archive, os.getpid())
        for member in (path, path.removeprefix("images/")):  # zipped as a folder or from inside of it
            if member in members.NameToInfo:
                return members.read(member)
        raise FileNotFoundError(f"no such file {path} in {os.path.abspath(folder)}, nor in {archive}")
    raise FileNotFoundError(f"no such file {path} in {os.path.abspath(folder)}")


def _is_inside(root: str, folder: str, path: str) -> bool:
    """By the names alone: the files of the Hub's cache are links that lead out of it."""
    inside = os.path.relpath(os.path.normpath(os.path.join(folder, path)), root)
    return not os.path.isabs(path) and not inside.startswith("..")


@functools.lru_cache(maxsize=2)
def _open_archive(path: str, process: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)  # of this process: forked ones would share its position in the file


def _enlarge(picture: PILImage.Image, to_rgb: Callable[[PILImage.Image], PILImage.Image]) -> PILImage.Image:
    picture = to_rgb(picture)
    scale = MIN_SIDE / min(picture.size)
    size = tuple(max(MIN_SIDE, round(side * scale)) for side in picture.size)
    return picture.resize(size, PILImage.Resampling.LANCZOS)


def _encode(picture: PILImage.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))
    return buffer.getvalue()
