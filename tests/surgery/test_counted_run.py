"""What cannot be counted one way is counted another; what fails fails for its own reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import _get_current_dispatch_mode

import exitkit as ek
from exitkit.errors import TracingError
from exitkit.modes.flags import preserved_rng
from exitkit.surgery.counted_run import counted_run
from exitkit.surgery.inputs import bind, signature_of
from exitkit.testing import check_backbone

WIDTH, LENGTH = 16, 5


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, _ = x.shape
        q, k, v = self.qkv(x).view(rows, length, 3, 2, WIDTH // 2).permute(2, 0, 3, 1, 4)
        # Plain attention gives other strides, of which there is no such view.
        return x + self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).view(x.shape))


class Opaque(Block):
    def forward(self, x: Tensor) -> Tensor:
        if _get_current_dispatch_mode() is not None:  # as compiled operators do
            raise RuntimeError("no rule for this mode")
        return x + torch.tanh(self.out(x))


class Broken(Block):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("these rows do not fit")


class Net(nn.Module):
    def __init__(self, block: type[nn.Module] = Block) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.blocks = nn.ModuleList([block() for _ in range(4)])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = x + t.reshape(-1, 1, 1) / 1000
        for block in self.blocks:
            h = block(h)
        return h


def example(rows: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, LENGTH, WIDTH, generator=generator), torch.linspace(900, 100, rows)


def counted(net: nn.Module) -> tuple[float, str]:
    with torch.no_grad(), preserved_rng():
        run, told = counted_run(net.eval(), bind(signature_of(net.forward), example(), {}))
    return run.calls[0].macs, told


def test_attention_whose_strides_a_forward_needs() -> None:
    macs, told = counted(Net())
    layers, products = 3 * LENGTH * WIDTH * 4 * WIDTH, 2 * 3 * LENGTH * LENGTH * WIDTH
    assert macs == 4 * (layers + products) and "usual kernels" in told
    check_backbone(Net().eval(), example())


def test_operators_that_cannot_be_counted() -> None:
    macs, told = counted(Net(Opaque))
    assert macs == 4 * 3 * LENGTH * WIDTH * WIDTH
    assert "layers alone" in told and "RuntimeError: no rule for this mode" in told
    assert len(ek.wrap(Net(Opaque).eval(), example_inputs=example(), exits=("*",)).exits) == 3


def test_what_fails_anyway_says_why() -> None:
    with pytest.raises(TracingError, match="these rows do not fit"):
        counted(Net(Broken))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cait_xxs24_224", {"img_size": 32, "depth": 4, "embed_dim": 32, "num_heads": 2}),
        ("pit_ti_224", {"img_size": 64, "base_dims": (16,) * 3, "heads": (1, 2, 4)}),
    ],
)
def test_real_networks_that_hand_views_of_parameters_on(name: str, options: dict[str, Any]) -> None:
    timm = pytest.importorskip("timm")
    if name.startswith("pit"):
        options = options | {"depth": (1, 2, 1), "patch_size": 16, "stride": 8}
    net = timm.create_model(name, num_classes=5, **options).eval()
    x = torch.randn(3, 3, options["img_size"], options["img_size"])
    model = ek.wrap(net, "relative", example_inputs=x, exits=("*",))
    assert "MACs of all operators" in model.plan.views
    model.policy = ek.policies.ScriptedExit((1, len(model.exits) + 1, 2))
    with torch.no_grad():
        torch.testing.assert_close(model(x)[1], net(x)[1])
