"""`kdbert doctor`: what this machine has, and what kdbert will use."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from kdbert.cli import options as o


def doctor(
    hub_timeout: Annotated[float, typer.Option(help="Seconds to wait for the Hugging Face Hub.")] = 3.0,
    debug: o.Debug = False,
) -> None:
    """Show what this machine has and what kdbert uses.

    kdbert doctor
    """
    import torch
    from huggingface_hub import constants

    from kdbert.devices import by_device, has_bf16_units
    from kdbert.models.locate import QUICKSTART_MODEL, quickstart_installed
    from kdbert.runs.environment import environment
    from kdbert.tasks.spec import DATA_DIR
    from kdbert.training.precision import choose_precision, make_accelerator

    facts = environment()
    device = make_accelerator().device
    precision = choose_precision("auto", device)
    attention = "kdbert" if by_device(device).own_attention else "sdpa"
    print(f"python      {facts['python']} on {facts['platform']}")
    print(f"processor   {facts['processor']}, cores: {facts['cores']}, torch threads: {facts['threads']}")
    for number, name in enumerate(facts["accelerators"]):
        free, total = torch.cuda.mem_get_info(number)
        print(f"cuda:{number}      {name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    if not facts["accelerators"]:
        print("cuda        none")
    print("versions    " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    print(f"bf16 units  {'yes' if has_bf16_units(device) else 'no'} ({device})")
    print(
        f"will pick   device {device}, precision {precision}, attention {attention} "
        "(for BERT-like models; the library's own for other types)"
    )
    print(
        f"quickstart  {QUICKSTART_MODEL}: "
        + ("installed" if quickstart_installed() else "not installed: pip install 'kdbert[quickstart]'")
    )
    folder = os.environ.get(DATA_DIR)
    there = "" if not folder or os.path.isdir(folder) else "; no such folder"
    default = f"glue_data for GLUE, data for other tasks (or set {DATA_DIR}, or pass --data-dir)"
    print(f"data        {f'{folder} ({DATA_DIR}{there})' if folder else default}")
    print(f"Hub cache   {constants.HF_HUB_CACHE}" + ("" if os.path.isdir(constants.HF_HUB_CACHE) else " (empty)"))
    print(f"Hub         {_hub(constants.ENDPOINT, hub_timeout)}")


def _hub(endpoint: str, timeout: float) -> str:
    """Whether the Hub answers."""
    from huggingface_hub import constants

    from kdbert.errors import without_credentials
    from kdbert.hub import unreachable

    if constants.HF_HUB_OFFLINE:
        return "offline by HF_HUB_OFFLINE"
    shown, reason = without_credentials(endpoint), unreachable(timeout)
    if reason is None:
        return f"{shown} answers"
    return f"{shown} not reachable ({reason}); local folders and the quickstart work without it"
