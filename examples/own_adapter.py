"""An adapter of your own: say what no dry run can know, and have it checked."""

import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import ExitKitError
from exitkit.policies import FixedExit
from exitkit.testing import check_adapter


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, h: Tensor, shift: Tensor) -> Tensor:
        return h + torch.tanh(self.linear(self.norm(h)) + shift)


class TwoOutputs(nn.Module):
    """Its clock runs from 1 (noise) down to 0, and it returns features beside the noise."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem, self.clock = nn.Linear(6, width), nn.Linear(1, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(6))
        self.head = nn.Linear(width, 6)

    def forward(self, state: Tensor, noise_level: Tensor) -> dict[str, Tensor]:
        h, shift = self.stem(state), self.clock(noise_level[:, None])
        for layer in self.layers:
            h = layer(h, shift)
        return {"features": h, "noise": self.head(h)}


torch.manual_seed(0)
backbone = TwoOutputs().eval()
state, level = torch.randn(3, 6), torch.tensor([0.9, 0.5, 0.1])

# %% What is declared stands in one place; what is left out is found by running the network.
adapter = ek.Adapter(
    name="two_outputs",
    matches=lambda module: isinstance(module, TwoOutputs),
    timestep="noise_level",
    timestep_range=(0.0, 1.0),
    prediction=".noise",
)
ek.register_adapter(adapter)
assert "two_outputs" in ek.list_adapters("two_*")
print(ek.inspect(backbone, example_inputs=(state, level)))

# %% The contract: bits, rows alone and in batches, counted work, undo.
check_adapter(adapter, backbone, example_inputs=(state, level))

# %% Exits predict what was declared.
model = ek.wrap(backbone, "relative", example_inputs=(state, level))
model.heads.mark_fitted()  # new exits warn; here they are to be used as they are
assert model.plan.prediction == ".noise"
model.policy = FixedExit(2)
with torch.no_grad():
    out = model(state, level)
assert out["noise"].shape == state.shape and model.trace.cost < 1

# %% A declaration that the network contradicts is refused, with its name.
wrong = ek.Adapter(name="wrong", matches=lambda module: True, prediction=".speech")
try:
    ek.wrap(ek.unwrap(model), example_inputs=(state, level), adapter=wrong)
except ExitKitError as error:
    print(f"refused: {error}")
    assert "speech" in str(error)
else:
    raise AssertionError("a prediction that is not there was accepted")
