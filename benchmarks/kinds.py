"""How networks of each kind of the landing fare under `carried`: `python -m benchmarks.kinds`.

The list is the project's own: small networks written in the tests, one for each way in which stages,
tails and callers can be built, and real ones from packages. Each is wrapped under the preset `carried`
and held to the contract. It is carried, or refused with an explanation (an error of this package at wrap
time), or wrong (anything else). Kinds that concern calls and not networks (gradient checkpointing, storage
in float8) have tests alone: tests/execution/test_recompute.py, tests/contract/test_forms.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from exitkit.errors import ExitKitError
from exitkit.surgery.inputs import Inputs
from exitkit.testing import ContractError, check_backbone
from tests.contract.test_forms import Series, Tokens, Waves
from tests.contract.test_residual_inputs import Popping
from tests.contract.test_token_ids import Masked, Score, ids
from tests.execution.test_new_arguments import CountedNet, Running, counted
from tests.landing_networks import (
    IMAGE,
    TOKENS,
    Chain,
    Conv,
    DualStream,
    Encoder,
    Fused,
    Outside,
    Refolding,
    UNet,
    WaveNet,
    example,
)
from tests.surgery import test_counted_run as attention
from tests.surgery import test_rows_alone as attributes
from tests.surgery.test_roles import Upscaler, Vocoder
from tests.surgery.test_timestep import Nameless
from tests.zoo import specimens

Network = tuple[str, Callable[[], nn.Module], Any]
"""Name, how it is made, and what it is called with."""

TIMES = torch.tensor([700.0, 400.0, 90.0])


def _running() -> nn.Module:
    net = CountedNet(True, running=True)
    net.blocks = nn.ModuleList([Running() for _ in range(4)])
    return net


def _small() -> dict[str, list[Network]]:
    """The networks written in the tests, by kind."""
    torch.manual_seed(0)
    image, tokens = example(IMAGE), example(TOKENS)
    rows = attributes.example()
    states = attributes.Containers
    return {
        "state left on the model": [
            ("notes of a block", lambda: attributes.Net(attributes.Noting), rows),
            ("rows in attributes", lambda: attributes.Net(attributes.Block), rows),
            ("rows in a shared dict", attributes.SharedRows, rows),
        ],
        "sums of skips": [
            (f"WaveNet ({how})", lambda how=how: WaveNet(how), tokens)
            for how in ("sum", "mean", "cat", "learned")
        ],
        "residuals outside": [
            ("x + f(x)", Outside, tokens),
            ("x + f(x) / 2", lambda: Outside(0.5), tokens),
            ("x + 0.3 f(x)", lambda: Outside(0.3), tokens),
            ("norms apart", lambda: Outside(apart=True), tokens),
            ("the last one bare", lambda: Outside(last=False), tokens),
        ],
        "skips": [
            (f"UNet ({how})", lambda how=how: UNet(how), image)
            for how in ("cat", "slice", "add", "scaled")
        ],
        "residuals as arguments": [
            ("popped", Popping, (torch.randn(3, 4, 6), TIMES)),
        ],
        "streams and folds": [
            ("two streams, then one", DualStream, (*tokens, torch.randn(3, 5, 12))),
            ("space and time", Refolding, example((4, 6, 16))),
            ("image and sound", Fused, (*example((4, 6, 16)), torch.randn(3, 5, 16))),
            ("encoder", Encoder, image),
            ("chain", Chain, tokens),
        ],
        "channel axis": [
            (f"convolution {shape}", lambda shape=shape: Conv(len(shape) - 1), example(shape))
            for shape in [(3, 24), (3, 16, 24), (3, 16, 16), (3, 4, 8, 8)]
        ],
        "token ids": [
            ("score", Score, (ids(), torch.tensor([0.9, 0.5, 0.1]))),
            ("masked", Masked, (ids(),)),
        ],
        "roles": [
            ("vocoder", Vocoder, (torch.randn(3, 8), TIMES, torch.randn(3, 8, 20))),
            ("upscaler", Upscaler, (torch.randn(3, 5, 9), torch.rand(3), torch.randn(3, 5, 6))),
            ("nameless", Nameless, (torch.randn(3, 4, 6), TIMES)),
        ],
        "false refusals": [
            ("strides of attention", attention.Net, attention.example()),
            ("operators not counted", lambda: attention.Net(attention.Opaque), attention.example()),
        ],
        "containers and packed rows": [
            ("dataclass, new", lambda: states(attributes.State, "made anew", False), rows),
            ("dataclass, returned", lambda: states(attributes.State, "returned", False), rows),
            ("dataclass, dropped", lambda: states(attributes.State, "returned", True), rows),
            ("plain object", lambda: states(SimpleNamespace, "made anew", False), rows),
            ("lengths", lambda: CountedNet(True), counted([3] * 5, [3] * 5)),
            ("running sums", _running, counted([3] * 5, [3] * 5)),
        ],
        "forms": [
            ("series", Series, (torch.randn(3, 5, 16), TIMES)),
            ("waves", Waves, (torch.randn(3, 3, 16), TIMES)),
            ("tokens", Tokens, (torch.randn(3, 9, 8), TIMES)),
        ],
    }


REAL = {
    "residuals outside": ["x-transformers.ContinuousTransformerWrapper"],
    "skips": [
        "denoising-diffusion-pytorch.Unet",
        "azula.UNet",
        "monai.DiffusionModelUNet",
        "diffusers.UNet2DModel",
        "diffusers.UNet2DConditionModel",
    ],
    "streams and folds": [
        "diffusers.FluxTransformer2DModel",
        "diffusers.AuraFlowTransformer2DModel",
        "diffusers.Lumina2Transformer2DModel",
        "diffusers.LatteTransformer3DModel",
        "diffusers.Kandinsky6Transformer3DModel",
    ],
    "channel axis": ["azula.UNet(1d, conditional)"],
    "token ids": ["diffusers.UVit2DModel"],
    "state left on the model": ["k-diffusion.ImageTransformerDenoiserModelV1"],
}
"""Networks of packages, by kind; those whose package is not installed are said to be missing."""


def networks() -> dict[str, list[Network]]:
    """All networks, by kind."""
    found, known = _small(), specimens()
    for kind, names in REAL.items():
        found[kind] += [(n, known[n].make, known[n].inputs(4)) for n in names if n in known]
    return found


def judge(make: Callable[[], nn.Module], inputs: Inputs | tuple[Tensor, ...]) -> tuple[str, str]:
    """Whether a network is `carried`, `refused`, `wrong` or `missing`, and what is said of it."""
    torch.manual_seed(0)
    try:
        net = make().eval()
    except ImportError as error:
        return "missing", str(error)
    try:
        # Small networks differ by little from depth to depth, large ones are rounded more.
        small = sum(p.numel() for p in net.parameters()) < 100_000
        check_backbone(net, inputs, config="carried", atol=2e-5 if small else 1e-4)
    except ContractError as error:
        return "wrong", str(error)
    except ExitKitError as error:
        return "refused", str(error)
    except Exception as error:  # no error of another kind is an explanation
        return "wrong", f"{type(error).__name__}: {error}"
    return "carried", ""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", help="parts of names of kinds; all if none is given")
    args = parser.parse_args()
    total = {"carried": 0, "refused": 0, "wrong": 0, "missing": 0}
    for kind, members in networks().items():
        if args.kinds and not any(part in kind for part in args.kinds):
            continue
        results = [(name, *judge(make, inputs)) for name, make, inputs in members]
        counts = {what: sum(r[1] == what for r in results) for what in total}
        total = {what: total[what] + counts[what] for what in total}
        print(f"{kind}: {', '.join(f'{n} {what}' for what, n in counts.items())}", flush=True)
        for name, result, message in results:
            print(f"  {result:8} {name}  {' '.join(message.split())[:200]}".rstrip(), flush=True)
    print(f"all: {', '.join(f'{n} {what}' for what, n in total.items())}")


if __name__ == "__main__":
    main()
