# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""How a command ends."""

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn


def stop(program: str, error: Exception) -> NoReturn:
    """
    End a command with its error and its notes on one line, whichever library it comes from.

    Launchers print a page of their own behind it. That of torchrun, which `accelerate launch` uses for several processes,
    ends with what it finds in an error file: the line again.
    """
    notes = traceback.TracebackException.from_exception(error).__notes__ or []
    line = f"{program}: error: {' '.join(' '.join([str(error), *notes]).split())}"
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if error_file:
        Path(error_file).write_text(json.dumps({"message": line, "timestamp": int(time.time())}))
    elif os.environ.get("ACCELERATE_MIXED_PRECISION"):  # which `accelerate launch` sets
        line += "\n(A traceback behind this line is accelerate's own and says no more: `accelerate launch --quiet` leaves it out.)"
    sys.exit(line)


def is_ours(error: Exception) -> bool:
    """Whether this package has raised it, to say what to do: nobody needs the lines of code that led there."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"].startswith("trl_cppo.")


def leave(processes: int, device: str) -> None:
    """
    End a command that went well, after its process group. Does nothing but on several CPU processes: gloo's threads may
    abort an interpreter that winds up ("terminate called without an active exception"; once in some forty runs), and the
    launcher would report a failure.
    """
    if processes > 1 and device == "cpu":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
