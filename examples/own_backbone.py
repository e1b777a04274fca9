"""A network of your own: wrap it, fit its exits without data, meet a budget, and undo it all."""

import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.policies import NeverExit, ScriptedExit


class Denoiser(nn.Module):
    """Eight residual blocks on 16 tokens; nothing in it knows of exits."""

    def __init__(self, width: int = 32, blocks: int = 8) -> None:
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.time = nn.Linear(1, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, batch_first=True)
            for _ in range(blocks)
        )
        self.out = nn.Linear(width, 4)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        tokens = self.embed(x.flatten(2).transpose(1, 2)) + self.time(t[:, None, None] / 1000)
        for block in self.blocks:
            tokens = block(tokens)
        return self.out(tokens).transpose(1, 2).reshape(x.shape)


def main() -> None:
    torch.manual_seed(0)
    backbone = Denoiser().eval()
    x, t = torch.randn(4, 4, 4, 4), torch.tensor([900.0, 600.0, 300.0, 10.0])
    with torch.no_grad():
        bare = backbone(x, t)

    # %% Look before cutting: nothing is changed here.
    print(ek.inspect(backbone, example_inputs=(x, t)))

    # %% One call. Nothing changes until a policy says so.
    model = ek.wrap(backbone, "carried", example_inputs=(x, t))
    model.policy = NeverExit()
    with torch.no_grad():
        assert torch.equal(model(x, t), bare)

    # %% No data: the full model runs its own trajectories, and its own output is the target.
    sampler = ek.Sampler("ddim", shape=(4, 4, 4), steps=10)
    ek.fit(model, sampler, steps=20, progress=False)

    # %% A budget in, a policy out; the sample of a seed does not depend on its batch mates.
    found = ek.calibrate(model, sampler, budget=0.6, policy="schedule", seeds=8, progress=False)
    model.policy = found.policy
    together = ek.generate(model, sampler, seeds=[3, 4, 5])
    assert together.trace.cost <= 0.62, together.trace
    alone = ek.generate(model, sampler, seeds=[4])
    torch.testing.assert_close(together.samples[1:2], alone.samples, rtol=0, atol=1e-4)
    print(together.trace)

    # %% Rows leave at their own depth: row 0 runs through, row 1 leaves at the first exit.
    stateless = ek.wrap(ek.unwrap(model), "relative", example_inputs=(x, t))
    stateless.heads.mark_fitted()  # new exits warn; here they are to be used as they are
    stateless.policy = ScriptedExit((len(stateless.exits) + 1, 1, 3, 1))
    with torch.no_grad():
        mixed = stateless(x, t)
    torch.testing.assert_close(mixed[0], bare[0], rtol=0, atol=1e-5)
    assert stateless.trace.depth.tolist() == [[len(stateless.exits) + 1, 1, 3, 1]]

    # %% And back: the same object, bit for bit.
    assert ek.unwrap(stateless) is backbone
    with torch.no_grad():
        assert torch.equal(backbone(x, t), bare)
    print("the backbone is as it was")


if __name__ == "__main__":
    main()
