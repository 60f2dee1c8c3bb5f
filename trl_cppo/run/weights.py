# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Reading weights back: a model ends with exactly the weights that were written, or there is an error.

transformers and PEFT only warn of keys that are missing or left over, and go on with the weights that were there.
"""

import functools
import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_peft_model
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file, logging
from transformers.utils.peft_utils import find_adapter_config_file

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

logger = logging.get_logger(__name__)

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # of safetensors
_HEAD = "lm_head.weight"
_ROOT_ADAPTER = "default"  # PEFT saves it in the folder itself, and others in folders of their names


class WeightsError(ValueError):
    """Weights that were read are not all of those that were written, or not those alone."""


def load_model(
    source: str | Path, dtype: str = "auto", revision: str | None = None, **options: Any
) -> "PreTrainedModel | PeftModel":
    """
    A trained model, or an adapter on its base model, with exactly the weights that were saved.

    Args:
        source (`str` or `Path`): Hub id or local folder of a model or a PEFT adapter.
        dtype (`str`, *optional*, defaults to `"auto"`): of the weights, which others than those saved rounds. `"auto"`:
            as they are saved; the widest, where they are of several.
        revision (`str`, *optional*): of a Hub model or adapter. The base model's is the one that the adapter names.
        **options: further arguments of `from_pretrained`, such as `attn_implementation`.

    Raises:
        [`WeightsError`]: if keys are missing, left over or of another shape.
        `ImportError`: for an adapter without PEFT.
    """
    source = str(source)
    if find_adapter_config_file(source, revision=revision) is None:
        return _load_whole(source, dtype, revision, **options)
    if find_spec("peft") is None:
        raise ImportError(f'{source} holds an adapter, which needs peft: pip install "trl-cppo[peft]".')
    from peft import PeftConfig, PeftModel
    from peft.utils import SAFETENSORS_WEIGHTS_NAME

    config = PeftConfig.from_pretrained(source, revision=revision)
    if not config.base_model_name_or_path:
        raise WeightsError(f"{source} does not say which base model its adapter is for (adapter_config.json).")
    own = _saved_dtypes(source, revision, SAFETENSORS_WEIGHTS_NAME) if _saves_modules(config) else set()
    base = _load_whole(config.base_model_name_or_path, dtype, config.revision, own, **options)
    # Not `from_pretrained` of the adapter's folder: it leaves out DoRA's magnitudes, with a warning.
    model = PeftModel.from_pretrained(base, source, revision=revision)
    _check_adapter(model, _ROOT_ADAPTER, source, may_round=dtype != "auto", revision=revision)
    return model


def restore(model: nn.Module, folder: str | Path) -> None:
    """
    Put the weights of a checkpoint into a model, in place, every bit and every parameter in its own dtype.

    Args:
        model (`PreTrainedModel` or `PeftModel`): of the kind that was saved; not sharded.
        folder (`str` or `Path`): the checkpoint, with whole weights in one file or several, or with adapters.

    Raises:
        [`WeightsError`]: if it does not hold all of the model's weights, or others, or wider ones.
    """
    folder = Path(folder)
    if isinstance(model, PreTrainedModel):
        _restore_whole(model, folder)
    else:
        _restore_adapters(model, folder)


@contextmanager
def checked_loading(model: nn.Module) -> Iterator[None]:
    """
    While this is open, `model.load_state_dict` raises if it misses a trained parameter or is given a key too many, though
    its caller (DeepSpeed, for adapters) asked it to be lenient.
    """
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    def check(module: nn.Module, keys: Any) -> None:
        _refuse("The checkpoint", missing=trained.intersection(keys.missing_keys), unexpected=keys.unexpected_keys)

    handle = model.register_load_state_dict_post_hook(check)
    try:
        yield
    finally:
        handle.remove()


def rounded_by_default(model: nn.Module) -> bool:
    """Whether `from_pretrained`, which has one type for all weights, may round some of this model's once it is saved."""
    if is_peft_model(model):
        return any(_saves_modules(config) for config in model.peft_config.values())
    return len(_floating(model)) > 1


def _saves_modules(config: "PeftConfig") -> bool:
    """Whether an adapter holds whole modules, which are read into copies of the base model's: of its type."""
    return bool(vars(config).get("modules_to_save"))


def _load_whole(
    source: str, dtype: str, revision: str | None, more: Collection[torch.dtype] = (), **options: Any
) -> PreTrainedModel:
    """A whole model; in `"auto"`, in the widest of the types that it was saved in and `more`."""
    if dtype == "auto":
        saved = _saved_dtypes(source, revision)
        if len(saved.union(more)) > 1:
            dtype = _widest(saved.union(more))
            logger.warning(
                f"{source} is loaded in {dtype}, for its weights are of several types: another would round."
            )
    model, keys = AutoModelForImageTextToText.from_pretrained(
        source, dtype=dtype, revision=revision, output_loading_info=True, **options
    )
    left_over = _without_derived(model, source, revision, keys["unexpected_keys"])
    _refuse(source, keys["missing_keys"], left_over, keys["mismatched_keys"])
    return model


def _without_derived(
    model: PreTrainedModel, source: str, revision: str | None, left_over: Collection[str]
) -> Collection[str]:
    """The keys without those of tables that models make themselves, and of heads that are the embeddings over again."""
    if not left_over:
        return left_over
    stored = model.state_dict()
    tables = {name.rpartition(".")[2] for name, _ in model.named_buffers() if name not in stored}
    left_over = [key for key in left_over if not any(table.endswith(key.rpartition(".")[2]) for table in tables)]
    heads = [key for key in left_over if key.endswith(_HEAD)]  # under names that may differ from the file's
    embeddings = model.get_input_embeddings().weight.cpu()
    for file in _safetensors(source, revision, SAFE_WEIGHTS_NAME) if heads else ():
        with safe_open(file, framework="pt") as weights:
            for key in weights.keys():
                if key.endswith(_HEAD) and not torch.equal(weights.get_tensor(key).to(embeddings.dtype), embeddings):
                    return left_over
    return [key for key in left_over if key not in heads]


def _restore_whole(model: PreTrainedModel, folder: Path) -> None:
    # Trainer compares a checkpoint's keys with the model's as they are. Qwen2-VL and others are saved under older names,
    # so nothing matches, a warning scrolls by and the run goes on with the weights that the model has (QwenLM/Qwen3-VL
    # issue 1763). from_pretrained translates the names; in the widest type, for it has one for all parameters.
    if find_adapter_config_file(str(folder)) is not None:
        raise WeightsError(f"{folder} holds an adapter, and the model that is trained has none: pass its peft_config.")
    dtype = _widest(_floating(model) | _saved_dtypes(str(folder)))
    saved, keys = type(model).from_pretrained(folder, dtype=dtype, output_loading_info=True)
    _refuse(folder, keys["missing_keys"], keys["unexpected_keys"], keys["mismatched_keys"])
    state = saved.state_dict()
    own = model.state_dict()
    _refuse(folder, missing=own.keys() - state.keys(), unexpected=state.keys() - own.keys())
    model.load_state_dict(state)
    _refuse_rounded(folder, model.state_dict(), state)


def _restore_adapters(model: "PeftModel", folder: Path) -> None:
    # Trainer loads one of several adapters as the best, and the one in the folder itself under the active one's name.
    held = {path.parent.name for path in folder.glob("*/adapter_config.json")}
    if (folder / "adapter_config.json").is_file():
        held.add(_ROOT_ADAPTER)
    names = set(model.peft_config)
    _refuse(folder, missing=names - held, unexpected=held - names, what="adapters")
    for name in sorted(names):
        source = str(folder if name == _ROOT_ADAPTER else folder / name)
        # Else PEFT casts half-precision adapters to float32, and `is_trainable=False` puts the model into evaluation.
        model.load_adapter(source, name, is_trainable=True, autocast_adapter_dtype=False)
        _check_adapter(model, name, source)


def _check_adapter(
    model: "PeftModel",
    name: str,
    source: str,
    may_round: bool = False,
    revision: str | None = None,
) -> None:
    """Compare what the model would save as this adapter with what was saved."""
    from peft import get_peft_model_state_dict
    from peft.utils import load_peft_weights

    saved = load_peft_weights(source, device="cpu", revision=revision)
    own = get_peft_model_state_dict(model, adapter_name=name)
    _refuse(source, missing=own.keys() - saved.keys(), unexpected=saved.keys() - own.keys())
    if not may_round:
        _refuse_rounded(source, own, saved)


def _refuse(
    source: str | Path,
    missing: Iterable[str] = (),
    unexpected: Iterable[str] = (),
    mismatched: Iterable[Any] = (),
    what: str = "weights",
) -> None:
    faults = {
        f"without {what} of the model": missing,
        f"with {what} that the model lacks": unexpected,
        "with weights of other shapes": mismatched,
    }
    for fault, keys in faults.items():
        keys = sorted(map(str, keys))
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise WeightsError(
                f"{source} was saved {fault}: {', '.join(keys[:3])}{more}. Read it into a model of the same kind and settings."
            )


def _refuse_rounded(source: str | Path, own: dict[str, torch.Tensor], saved: dict[str, torch.Tensor]) -> None:
    for name, value in own.items():
        if value.dtype != saved[name].dtype and not torch.equal(value.to("cpu", saved[name].dtype), saved[name].cpu()):
            raise WeightsError(
                f"{source} holds {name} in {saved[name].dtype}, and the model's {value.dtype} would round it. Load the model "
                "in the dtype that it was saved in."
            )


def _floating(model: nn.Module) -> set[torch.dtype]:
    return {value.dtype for value in model.state_dict().values() if value.is_floating_point()}


def _widest(dtypes: set[torch.dtype]) -> torch.dtype:
    return functools.reduce(torch.promote_types, dtypes)


def _saved_dtypes(source: str, revision: str | None = None, name: str = SAFE_WEIGHTS_NAME) -> set[torch.dtype]:
    """The floating types of the weights in safetensors files; of files of other kinds, none."""
    found = set()
    for file in _safetensors(source, revision, name):
        with safe_open(file, framework="pt") as weights:
            types = {weights.get_slice(key).get_dtype() for key in weights.keys()}
        found |= {_DTYPES[kind] for kind in types if kind in _DTYPES}
    return found


def _safetensors(source: str, revision: str | None, name: str) -> list[str]:
    """The files of a model's weights, as `from_pretrained` finds them."""

    def find(name: str) -> str | None:
        try:
            return cached_file(source, name, revision=revision)
        except OSError:  # there is no such file
            return None

    whole, index = find(name), find(SAFE_WEIGHTS_INDEX_NAME)
    if whole or not index:
        return [whole] if whole else []
    names = set(json.loads(Path(index).read_text())["weight_map"].values())
    return [file for file in map(find, sorted(names)) if file]
