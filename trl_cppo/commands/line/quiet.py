# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What libraries say of each other, which nobody who types a command can act on: each by its own words. Whatever else they say is shown."""

import logging
import warnings

# Category, beginning of the message, module that is warned of.
_WARNINGS = [
    # TRL sets it, whatever the user does, and calls the methods.
    (FutureWarning, "`(is_)?gradient_checkpointing(_enable|_disable)?` is deprecated", r"transformers\."),
    # DeepSpeed calls them.
    (FutureWarning, r"`torch\.distributed\.(all_gather_into|reduce_scatter)_tensor` is deprecated", r"torch\."),
    (UserWarning, "'pin_memory' argument is set as true but no accelerator is found", r"torch\.utils\.data"),
]


class _Without(logging.Filter):
    """Leaves out the records that begin with a text."""

    def __init__(self, text: str):
        super().__init__()
        self.text = text

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.text)


# On a machine without a GPU; the first line of a training says that it runs on the CPU.
_RECORDS = {
    "DeepSpeed": _Without("Setting accelerator to CPU."),
    "torch.utils.cpp_extension": _Without("No CUDA runtime is found"),
}


def leave_out_noise() -> None:
    """Of this process, from now on."""
    for category, message, module in _WARNINGS:
        warnings.filterwarnings("ignore", message, category, module)
    for name, without in _RECORDS.items():
        logging.getLogger(name).addFilter(without)
