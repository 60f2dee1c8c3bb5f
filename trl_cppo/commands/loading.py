# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Data sets and rewards by the names that a user types, with errors of one line that say what to do."""

import contextlib
import functools
import importlib
import importlib.util
import inspect
import json
import logging
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError
from trl.rewards import accuracy_reward

from ..rewards import boxed_accuracy_reward, think_boxed_format_reward
from ..run.rows.checks import check_dataset, check_solutions
from ..run.rows.layouts import LEFT_OUT, PREPARE, RECORD, about_conversations, prepare_command
from .line import nothing_here
from .prepare.sources import columns_of

logger = logging.getLogger(__name__)

DIGITS = "digits"  # the name of the embedded data set
# What make_dataset takes; 42 is the default seed of a run, which trains on these canvases.
_DIGITS_SPLITS = {"train": ("rl", 4000, 42), "test": ("held_out", 2000, 1)}
DEFAULT_REWARDS = {
    "boxed_accuracy_reward": (boxed_accuracy_reward, 0.9),
    "think_boxed_format_reward": (think_boxed_format_reward, 0.1),
}
MATH_REWARDS = {"boxed_accuracy_reward": boxed_accuracy_reward, "accuracy_reward": accuracy_reward}  # need `solution`
KNOWN_REWARDS = {**MATH_REWARDS, "think_boxed_format_reward": think_boxed_format_reward}


def check_folder(flag: str, path: str | None) -> None:
    """
    Refuse what is neither a folder nor reads like the Hub id of a model, `owner/name`, before the Hub is asked.

    Raises:
        `FileNotFoundError`: naming the flag.
    """
    if path is None or path == DIGITS or Path(path).expanduser().is_dir():
        return
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise FileNotFoundError(f"{flag}: there is no folder {path}. A model of the Hub is named owner/name.")


def load_splits(name: str, config: str | None = None, streaming: bool = False) -> dict[str, Dataset | IterableDataset]:
    """
    The splits of a data set.

    Args:
        name (`str`): a Hub id, a local folder of data files, a folder that `save_to_disk` wrote, or `"digits"`: the
            embedded task, with 4,000 canvases in `train` and 2,000 of other handwriting in `test`.
        config (`str`, *optional*): the Hub data set's configuration.
        streaming (`bool`, *optional*, defaults to `False`): read it as a stream.

    Raises:
        `ValueError`: if it cannot be loaded, or is a folder of several prepared ones.
    """
    if name == DIGITS:
        return {split: _digits(split) for split in _DIGITS_SPLITS}
    if Path(name).is_file():
        columns = columns_of(name)
        raise ValueError(
            f"{name} is a file, and training takes prompts, images and solutions; its columns are {columns}. Prepare it: "
            f"{prepare_command(name, columns)}, and name that folder.{about_conversations(columns)}"
        )
    _check_one(name)
    try:
        if (Path(name) / "dataset_dict.json").is_file() or (Path(name) / "state.json").is_file():
            dataset = load_from_disk(name)
            return dataset if isinstance(dataset, DatasetDict) else {"train": dataset}
        return load_dataset(name, name=config, streaming=streaming)
    except (ValueError, IndexError, DatasetGenerationError) as error:  # no rows; ViRL39K's images.zip, taken for data
        raise ValueError(
            f"{name} cannot be loaded ({error.__cause__ or error}). Check that it is a data set and has rows; one with images "
            f"in an archive must be prepared: {PREPARE}."
        ) from error
    except OSError as error:
        if Path(name).exists():
            raise
        raise ValueError(f"{nothing_here(name)}, and it cannot be had from the Hub: {error}") from error


def _check_one(name: str) -> None:
    """Of a folder that holds several prepared ones `load_dataset` would make one data set."""
    folder = Path(name)
    if folder.is_dir() and not (folder / RECORD).exists():
        found = [record.parent for record in sorted(folder.rglob(RECORD))]
        prepared = [str(inner) for inner in found if "/." not in f"/{inner.relative_to(folder).as_posix()}"]
        if prepared:
            raise ValueError(
                f"{name} is no prepared folder, but there are some in it: name one, {' or '.join(prepared)}."
            )


def _digits(split: str) -> Dataset:
    from .. import digits

    return digits.make_dataset(*_DIGITS_SPLITS[split])


def load_split(
    name: str,
    split: str,
    required: tuple[str, ...] = ("prompt",),
    config: str | None = None,
    streaming: bool = False,
    graded: bool = True,
) -> Dataset | IterableDataset:
    """
    One split of what [`load_splits`] loads, its columns checked.

    Args:
        name, config, streaming: as for [`load_splits`].
        split (`str`): which one.
        required (`tuple[str, ...]`): the columns that must exist.
        graded (`bool`, *optional*, defaults to `True`): whether `boxed_accuracy_reward` grades by a required `solution`;
            then each is looked at, unless in a stream. Other rewards may take solutions of other kinds.

    Raises:
        `ValueError`: if there is no such split, no row, no required column or no image, or a solution cannot be graded.
    """
    if name == DIGITS and split in _DIGITS_SPLITS:  # drawing the other one too would take seconds
        return _digits(split)
    splits = load_splits(name, config, streaming)
    if split not in splits:
        raise ValueError(f"{name} has no split {split!r}, only {list(splits)}.")
    # Of a folder with photos `datasets` may see the photos alone, where `prepare` sees the file of questions beside them.
    unprepared = (
        Path(name).is_dir() and isinstance(splits[split], Dataset) and "prompt" not in splits[split].column_names
    )
    columns = columns_of(name) if unprepared else None
    check_dataset(splits[split], f"{name} ({split})", required, source=name, source_columns=columns)
    if graded and "solution" in required:
        check_solutions(splits[split], f"{name} ({split})")
    record = Path(name, LEFT_OUT)  # of `prepare`
    left_out = json.loads(record.read_text()).get(split) if record.is_file() else None
    if left_out:
        logger.info("When %s was prepared, of %s were %s.", name, split, left_out)
    return splits[split]


class RewardCountError(ValueError):
    """A reward returned another number of values than there are completions."""


@contextlib.contextmanager
def _importable(folder: str) -> Iterator[None]:
    """
    While this is open, modules of a folder can be imported, before all others.

    Not longer: on the path for good, its `datasets.py` or `utils.py` would stand before the libraries' own in every import
    that these put off. Hence not only around the import of a reward but again around each call: a reward may put off its
    imports as well, and knows the folder that its file lies in.
    """
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)  # the first, which is ours: whoever imports in between may have added it too


@contextlib.contextmanager
def _importing(name: str, folder: str) -> Iterator[None]:
    """The same around the import of a reward, which runs code of the user's: any error of it names the reward."""
    try:
        with _importable(folder):
            yield
    except Exception as error:
        raise ImportError(f"The reward {name} cannot be imported: {type(error).__name__}: {error}.") from error


def _import_reward(name: str) -> Callable[..., Any]:
    """The reward of a dotted import path, from the working folder or what is installed."""
    folder = str(Path.cwd())  # the run may leave it
    module, attribute = name.rsplit(".", 1)
    with _importing(name, folder):
        reward = getattr(importlib.import_module(module), attribute)
    return _checked(reward, folder)


def _reward_of_file(name: str) -> Callable[..., Any]:
    """The reward of `path/to/file.py:function`; the file's folder can be imported from."""
    path, _, function = name.partition(":")
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise FileNotFoundError(f"The reward {name}: there is no file {path}.")
    module = sys.modules.get(str(file)) or _module_of(file, name)
    own = [
        key for key, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__
    ]
    there_is = f"{path} has the functions {', '.join(own)}." if own else f"{path} has no function."
    if not function:
        raise ValueError(f"The reward {name} names a file and no function: {path}:FUNCTION. {there_is}")
    if not callable(vars(module).get(function)):
        raise AttributeError(f"The reward {name}: there is no function {function!r}. {there_is}")
    return _checked(vars(module)[function], str(file.parent))


def _module_of(file: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(str(file), file)  # by its path: no library is called so
    module = importlib.util.module_from_spec(spec)
    with _importing(name, str(file.parent)):
        spec.loader.exec_module(module)
    sys.modules[str(file)] = module  # once for all its rewards
    return module


def _checked(reward: Callable[..., Any], folder: str) -> Callable[..., Any]:
    return _awaited(reward, folder) if inspect.iscoroutinefunction(reward) else _counted(reward, folder)


def _awaited(reward: Callable[..., Any], folder: str) -> Callable[..., Any]:
    @functools.wraps(reward)
    async def awaited(**kwargs: Any) -> list[float | None]:
        with _importable(folder):
            return await reward(**kwargs)

    return awaited


def _counted(reward: Callable[..., list[float | None]], folder: str) -> Callable[..., list[float | None]]:
    """The reward, with its values counted: TRL's own error would come with a page of traceback."""

    @functools.wraps(reward)
    def counted(completions: list[Any], **kwargs: Any) -> list[float | None]:
        with _importable(folder):
            values = reward(completions=completions, **kwargs)
        if len(values) != len(completions):
            raise RewardCountError(
                f"the reward {reward.__name__} returned {len(values)} values for {len(completions)} completions. "
                "Return one value a completion, None where it cannot be scored."
            )
        return values

    return counted


# What TRL hands to a reward besides the columns of the data set, other than `prompt`.
_HANDED_BY_TRL = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")


def check_parameters(rewards: list[Callable[..., Any]], columns: Collection[str]) -> None:
    """
    Before a model is loaded: Python would say so only after the first generation, and with a page of traceback.

    Args:
        rewards (`list[Callable]`): what [`load_rewards`] gives.
        columns (`Collection[str]`): of the data set.

    Raises:
        `ValueError`: for a reward that does not take what it gets, or asks for a column that is not there.
    """
    handed = {*_HANDED_BY_TRL, *columns} - {"prompt"}
    for reward in rewards:
        parameters = inspect.signature(reward).parameters.values()
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            raise ValueError(
                f"the reward {reward.__name__} must take **kwargs besides what it names: it gets prompts, completions, each "
                "column of the data set and more."
            )
        needed = [
            p.name for p in parameters if p.default is p.empty and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        missing = [name for name in needed if name not in handed]
        if missing:
            raise ValueError(
                f"the reward {reward.__name__} asks for {missing[0]!r}, and the data set has the columns {sorted(columns)} "
                "(prepared ones hold the answer in 'solution')."
            )


def load_rewards(names: list[str] | None) -> tuple[list[Callable], list[float] | None]:
    """
    Reward functions by their names.

    Args:
        names (`list[str]`, *optional*): a known name, a file and its function (`./my_rewards.py:my_reward`) or a dotted import
            path each; the working folder can be imported from. `None`: the authors' mixture.

    Returns:
        `tuple[list[Callable], list[float] | None]`: the functions, and the mixture's weights or `None`.

    Raises:
        `ValueError`, `OSError`, `ImportError`, `AttributeError`: for a name that leads nowhere, or if math-verify is missing.
    """
    missing = importlib.util.find_spec("math_verify") is None
    for name in (DEFAULT_REWARDS if names is None else names) if missing else ():
        if name in MATH_REWARDS:
            raise ImportError(f'{name} needs math-verify: pip install "trl-cppo[math]", or choose another reward.')
    if names is None:
        functions, weights = zip(*DEFAULT_REWARDS.values(), strict=True)
        return list(functions), list(weights)
    functions = []
    for name in names:
        if name in KNOWN_REWARDS:
            functions.append(KNOWN_REWARDS[name])
        elif name.partition(":")[0].endswith(".py"):
            functions.append(_reward_of_file(name))
        elif "." in name.strip("./") and "/" not in name and ":" not in name:
            functions.append(_import_reward(name))
        else:
            raise ValueError(
                f"Unknown reward {name!r}. Known: {', '.join(KNOWN_REWARDS)}, or a file and its function "
                "(./my_rewards.py:my_reward), or a dotted import path (my_package.my_reward)."
            )
    return functions, None
