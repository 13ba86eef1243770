"""Pickles that do something when they are read: each would make the folder `executed` in the working folder."""

from __future__ import annotations

import io
import os
import pickle
from typing import Any

EXECUTED = "executed"


class Bomb:
    """What does something when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (EXECUTED,)


def bombs() -> dict[str, bytes]:
    """A plain pickle, and one in torch's own form."""
    import torch

    buffer = io.BytesIO()
    torch.save({"weight": Bomb()}, buffer)
    return {"pickle": pickle.dumps(Bomb()), "torch": buffer.getvalue()}
