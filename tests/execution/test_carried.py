"""Carried exits against naive loops: every row alone, third-party modules called by hand."""

import pytest
import torch

import exitkit as ek
from exitkit.errors import TrajectoryError
from exitkit.heads import CarriedState, FullStep
from exitkit.policies import FixedExit, NeverExit, ScriptedExit, StepSchedule
from tests.backbones import perturb


def tiny_uvit(seed=0):
    from examples.reproduction.models.uvit import UViT, UViTConfig

    config = UViTConfig(img_size=8, patch_size=2, in_chans=1, embed_dim=16, depth=4, num_heads=2)
    return perturb(UViT(config), seed)


def tiny_unet(seed=0):
    from diffusers import UNet2DModel

    return perturb(
        UNet2DModel(
            sample_size=16,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 16, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D",) * 3,
            up_block_types=("UpBlock2D",) * 3,
        ),
        seed,
    )


def randomise(model, seed):
    """Trained-like heads: a correction of zero would hide mistakes in its inputs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.heads.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.05)
    model.heads.mark_fitted()


def split_uvit(net, x, t):
    """Stem and first block; then the rest; then the tail, from modules called by hand."""
    seen = {}
    first, last = net.in_blocks[0], net.out_blocks[-1]
    handles = [
        first.register_forward_hook(lambda m, a, out: seen.__setitem__("h", out)),
        last.register_forward_hook(lambda m, a, out: seen.__setitem__("end", out)),
    ]
    out = net(x, t)
    for handle in handles:
        handle.remove()
    return out, seen["h"], seen["end"]


def uvit_tail(net, x, t, end):
    handle = net.out_blocks[-1].register_forward_hook(lambda m, a, out: end)
    out = net(x, t)
    handle.remove()
    return out


def split_unet(net, x, t, carried=None):
    """The forward of UNet2DModel from its parts; `carried` replaces what enters the last up block."""
    emb = net.time_embedding(net.time_proj(t))
    h = net.conv_in(x)
    skips = [h]
    first = None
    for block in net.down_blocks:
        h, res = block(hidden_states=h, temb=emb)
        first = h if first is None else first
        skips += res
    h = net.mid_block(h, emb)
    for i, block in enumerate(net.up_blocks):
        res = tuple(skips[-len(block.resnets) :])
        skips = skips[: -len(block.resnets)]
        if i == len(net.up_blocks) - 1:
            entering = h
            h = h if carried is None else carried
        h = block(h, res, emb)
    return net.conv_out(net.conv_act(net.conv_norm_out(h))), first, entering


def naive(model, net, walk, depths, split, finish):
    """One row alone: last two full steps in plain variables."""
    head = model.heads.output[0]
    memory, outs = [], []
    for (x, t), depth in zip(walk, depths, strict=True):
        out, h, end = split(net, x, t)
        if depth == 1 and memory:
            state = CarriedState(t, memory[-1], memory[max(len(memory) - 2, 0)])
            out = finish(net, x, t, head(h, model.heads.embed(t), state=state))
        else:
            memory.append(FullStep(h, end - h if head.relative else end, t))
        outs.append(out)
    return outs


CASES = {
    "uvit": (tiny_uvit, 8, split_uvit, uvit_tail),
    "unet": (
        tiny_unet,
        16,
        split_unet,
        lambda net, x, t, end: split_unet(net, x, t, carried=end)[0],
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_rows_with_their_own_schedules_equal_naive_loops(name, seed):
    build, size, split, finish = CASES[name]
    net = build(seed)
    generator = torch.Generator().manual_seed(seed)
    times = [900.0, 700.0, 500.0, 420.0, 300.0, 100.0]
    xs = [torch.randn(3, 1, size, size, generator=generator) for _ in times]
    # Rows: all full; full then carried; carried whenever it may (the first step cannot be).
    depths = [(2, 2, 1), (2, 1, 1), (2, 1, 2), (2, 2, 1), (2, 1, 1), (2, 1, 2)]
    with torch.no_grad():
        walks = [
            [(x[b : b + 1], torch.tensor([t])) for x, t in zip(xs, times, strict=True)]
            for b in range(3)
        ]
        model = ek.wrap(net, "carried", example_inputs=(xs[0], torch.full((3,), 900.0)))
        randomise(model, seed)
        references = [
            naive(model, net, walk, [d[b] for d in depths], split, finish)
            for b, walk in enumerate(walks)
        ]
        outs = []
        with model.trajectory(steps=len(times)):
            for x, t, depth in zip(xs, times, depths, strict=True):
                model.policy = ScriptedExit(depth)
                out = model(x, torch.full((3,), t))
                outs.append(model.prediction_of(out))
    for s, out in enumerate(outs):
        for b in range(3):
            torch.testing.assert_close(out[b : b + 1], _tensor(references[b][s]), atol=2e-5, rtol=0)
    # Depth 1 in the first step is refused: there is nothing to carry.
    assert model.trace.depth.tolist() == [[2, 2, 2], *[list(d) for d in depths[1:]]]
    # Negative control: the first row runs in full, the second does not, and it shows.
    carried_step = model.prediction_of(net(xs[1], torch.full((3,), times[1])))
    assert (outs[1][0] - carried_step[0]).abs().max() < 2e-5
    assert (outs[1][1] - carried_step[1]).abs().max() > 1e-3


def _tensor(out):
    return out if isinstance(out, torch.Tensor) else out.sample


def test_unet_skips_the_middle_and_runs_fresh_ends():
    net = tiny_unet()
    x = torch.randn(2, 1, 16, 16)
    model = ek.wrap(net, "carried", example_inputs=(x, torch.tensor([5, 9])))
    model.heads.mark_fitted()  # as they start, they reuse what the last full step added
    model.policy = StepSchedule((2, 1))
    with torch.no_grad(), model.trajectory():
        model(x, 500)
        model(x, 400)
        rows = model.trace.block_rows
    assert rows["down_blocks.0"] == 4 and rows["up_blocks.2"] == 4
    assert rows["down_blocks.1"] == rows["mid_block"] == rows["up_blocks.1"] == 2
    assert model.trace.cost < 0.9


def test_all_carried_exits_of_a_unet_are_those_that_can_resume():
    """At the mirrored stage, or, where no later stage takes fresh skips, at the end."""
    x = torch.randn(2, 1, 16, 16)
    example = (x, torch.tensor([5, 9]))
    net = tiny_unet()
    with torch.no_grad():
        want = net(x, 500).sample
    model = ek.wrap(net, "carried", exits=None, example_inputs=example)
    model.heads.mark_fitted()
    paths = [exit.path for exit in model.exits]
    assert "down_blocks.0" in paths and "up_blocks.1" in paths
    assert [b.resume for b in model.plan.boundaries[:6]] == [6, 5, 4, 5, 6, 7]
    for path in paths:
        model.policy = StepSchedule((1_000_000, paths.index(path) + 1))
        with torch.no_grad(), model.trajectory():
            full = model(x, 500).sample
            model(x, 400)
        assert model.trace.cost < 1
        torch.testing.assert_close(full, want)
    mirror = {"kind": "carried", "resume": "mirror"}
    with pytest.raises(ek.errors.BoundaryError, match="'up_blocks.1' can resume nowhere: no later"):
        ek.wrap(
            tiny_unet(), "carried", exits=("up_blocks.1",), output=mirror, example_inputs=example
        )


def test_state_is_dropped_when_time_turns_or_the_batch_changes():
    net = tiny_uvit()
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([500.0, 500.0])
    model = ek.wrap(net, "carried", example_inputs=(x, t))
    model.heads.mark_fitted()
    model.policy = FixedExit(1)
    with torch.no_grad(), model.trajectory():
        assert depth_of(model, x, t) == 2
        assert depth_of(model, x, t - 100) == 1
        assert depth_of(model, x, t + 100) == 2  # a new generation began
        assert depth_of(model, x, t) == 1
        assert depth_of(model, x[:1], t[:1] - 50) == 2  # another batch
        assert depth_of(model, x[:1], t[:1] - 90) == 1


def depth_of(model, x, t):
    model(x, t)
    return int(model.trace.calls[-1].depth[0])


def test_each_guidance_branch_keeps_its_own_state():
    net = tiny_uvit()
    x, y = torch.randn(1, 1, 8, 8), torch.randn(1, 1, 8, 8)
    times = [torch.tensor([t]) for t in (900.0, 700.0, 500.0)]
    model = ek.wrap(net, "carried", example_inputs=(x, times[0]))
    randomise(model, 0)
    model.policy = StepSchedule((2, 1, 1))

    def run(inputs):
        outs = []
        with torch.no_grad(), model.trajectory():
            for t in times:
                outs.append([model(i, t) for i in inputs])
        return outs

    both, first, second = run([x, y]), run([x]), run([y])
    for s in range(3):
        torch.testing.assert_close(both[s][0], first[s][0], atol=0, rtol=0)
        torch.testing.assert_close(both[s][1], second[s][0], atol=0, rtol=0)
    assert (both[2][0] - both[2][1]).abs().max() > 1e-3


def test_outside_a_trajectory_nothing_is_carried_and_it_says_so():
    net = tiny_uvit()
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([5.0, 9.0])
    model = ek.wrap(net, "carried", example_inputs=(x, t))
    model.policy = FixedExit(1)
    with pytest.warns(UserWarning, match="nothing to carry outside a trajectory"):
        out = model(x, t)
    assert torch.equal(out, net(x, t))
    model.policy = NeverExit()
    with model.trajectory(), pytest.raises(TrajectoryError, match="open already"):
        with model.trajectory():
            pass
    with pytest.raises(TrajectoryError, match="no output on a single input"):
        model(x, t, output_exits=True)


@pytest.mark.parametrize("turning", [2, None])
def test_a_row_that_turns_round_is_no_matter_of_its_mates(turning):
    """Rows whose time goes on carry as they do alone, beside one that turns or without."""
    torch.manual_seed(0)
    net = tiny_uvit()
    times = torch.tensor([[900.0, 880.0, 500.0], [800.0, 780.0, 400.0], [700.0, 640.0, 300.0]])
    times = torch.cat([times, times[2:] - 100])
    if turning is not None:
        times[2:, turning] = torch.tensor([450.0, 350.0])
    xs = torch.randn(4, 3, 1, 8, 8)
    model = ek.wrap(net, "carried", example_inputs=(xs[0], times[0]))
    randomise(model, 0)

    def run(rows):
        depths, outs = [], []
        with model.trajectory(), torch.no_grad():
            for k in range(4):
                model.policy = FixedExit(1) if k >= 2 else NeverExit()
                outs.append(model(xs[k][rows], times[k][rows]))
        for call in model.trace.calls:
            depths.append(call.depth)
        return torch.stack(outs), torch.stack(depths)

    outs, depths = run(slice(0, 3))
    for row in range(3):
        alone, own = run(slice(row, row + 1))
        torch.testing.assert_close(outs[:, row : row + 1], alone)
        assert torch.equal(depths[:, row], own[:, 0])
    left = [[2, 2, 1, 1], [2, 2, 1, 1], [2, 2, 1 if turning is None else 2, 1]]
    assert depths.T.tolist() == left  # the control: who goes on carries, who turns runs in full
