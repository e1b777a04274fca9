"""Weights that wait elsewhere, and gradients that come from two processes."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from torch import nn

import exitkit as ek
from exitkit.errors import AlreadyWrappedError
from exitkit.policies import FixedExit, NeverExit, ScriptedExit
from exitkit.testing.contract import equal, require
from tests.mishaps import CASES, PIXART, Subject

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def everything(model: nn.Module) -> None:
    """As `enable_sequential_cpu_offload`: every weight waits on the device `meta`."""
    cpu_offload(model, CPU)


def blocks_alone(model: nn.Module) -> None:
    """Each block comes and goes as a whole, as with one device map entry a block."""
    for block in repeated(model):
        state = {name: value.detach().clone() for name, value in block.state_dict().items()}
        hook = AlignDevicesHook(CPU, offload=True, weights_map=state, place_submodules=True)
        add_hook_to_module(block, hook)


def dispatched(model: nn.Module) -> None:
    """As `from_pretrained(device_map=...)` with parts that do not fit."""
    # Parameters of the root itself are named by no child.
    names = [""] if model._parameters else [name for name, _ in model.named_children()]
    device_map = dict.fromkeys(names, "cpu")
    dispatch_model(model, device_map, main_device="cpu", force_hooks=True)


def repeated(model: nn.Module) -> list[nn.Module]:
    lists = ("transformer_blocks", "down_blocks", "up_blocks")
    return [block for name in lists for block in getattr(model, name, ())]


def brought(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Records the modules whose weights are brought."""
    seen: list[nn.Module] = []
    bring = AlignDevicesHook.pre_forward

    def watched(self: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        seen.append(module)
        return bring(self, module, *args, **kwargs)

    monkeypatch.setattr(AlignDevicesHook, "pre_forward", watched)
    return seen


ALWAYS = [
    (CASES["dit"], everything, "before"),
    (CASES["dit"], dispatched, "after"),
    # A DiT with captions; the DiT without them cannot have its blocks wait alone.
    (PIXART, blocks_alone, "before"),
    (PIXART, blocks_alone, "after"),
]
"""Each place, and before and after wrapping; the other combinations with the slow tests."""


@pytest.mark.parametrize(
    ("subject", "place", "when"),
    [
        pytest.param(
            subject,
            place,
            when,
            id=f"{subject.id}-{place.__name__}-{when}",
            marks=[pytest.mark.slow] * ((subject, place, when) not in ALWAYS),
        )
        for subject in (CASES["dit"], CASES["unet_conditional"], PIXART)
        for place in (everything, blocks_alone, dispatched)
        for when in ("before", "after")
    ],
)
def test_outputs_are_the_same_wherever_weights_wait(
    subject: Subject, place: Any, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if subject is CASES["dit"] and place is blocks_alone:
        pytest.skip("its own tail asks a part of the first block, which is away by then")
    model, inputs = subject.make()
    reference = ek.wrap(subject.build(), example_inputs=inputs)
    if when == "before":
        place(model)
    wrapped = ek.wrap(model, example_inputs=inputs)
    if when == "after":
        place(model)
        with pytest.raises(AlreadyWrappedError):  # the gate lies under the hook now
            ek.wrap(model, example_inputs=inputs)
    wrapped.heads.load_state_dict(reference.heads.state_dict())
    last = len(wrapped.exits) + 1
    meta = {name for name, p in model.named_parameters() if p.device.type == "meta"}
    with torch.no_grad():
        for policy in (NeverExit(), ScriptedExit((1, last, 2)), FixedExit(1), FixedExit(1)):
            reference.policy = wrapped.policy = policy
            found = wrapped(*inputs.args, **inputs.kwargs)
            require(equal(found, reference(*inputs.args, **inputs.kwargs)), f"{policy} differs")
            now = {name for name, p in model.named_parameters() if p.device.type == "meta"}
            require(now == meta, f"{sorted(meta - now)[:3]} did not go back under {policy}")
        seen = brought(model, monkeypatch)
        wrapped(*inputs.args, **inputs.kwargs)
        stages = {stage.path.split("#")[0]: stage for stage in wrapped.plan.stages}
        skipped = [
            model.get_submodule(path)
            for path in stages
            if not wrapped.trace.block_rows[path] and path != wrapped.exits[0].path
        ]
        require(bool(skipped), "no block was skipped")
        if place is everything or when == "before":
            # A hook that was put over a gate is called before the gate can tell that nobody comes.
            own = {
                id(m)
                for block in skipped
                for m in block.modules()
                if when == "before" or m is not block
            }
            require(not [m for m in seen if id(m) in own], "weights of a skipped block are brought")
    require(bool(seen) or place is blocks_alone, "nothing was brought at all")
    ek.unwrap(wrapped)
    with torch.no_grad():
        full = model(*inputs.args, **inputs.kwargs)
        reference.policy = NeverExit()
        require(equal(full, reference(*inputs.args, **inputs.kwargs)), "unwrapped, it differs")
    remove_hook_from_module(model, recurse=True)


TWO = """
    import os, sys
    sys.path.insert(0, {root!r})
    import torch
    torch.set_num_threads(1)
    import torch.multiprocessing as mp
    from tests.contract.test_reliability_places import fitted, joined, shards

    def work(rank, folder):
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
            MASTER_PORT={port!r}, ACCELERATE_USE_CPU="true",
        )
        from accelerate import Accelerator
        accelerator = Accelerator(cpu=True)
        assert accelerator.num_processes == 2
        torch.save(fitted(shards(), accelerator), f"{{folder}}/{{rank}}.pt")
        accelerator.end_training()

    if __name__ == "__main__":
        # Imported once, then forked: no gradient was computed yet, so that is allowed.
        mp.start_processes(work, args=({folder!r},), nprocs=2, start_method="fork")
        torch.save(fitted(joined(), None), {folder!r} + "/one.pt")
"""


def shards() -> list[Any]:
    """Four examples of two rows: the processes take turns."""
    from exitkit.training.batches import Example

    _, inputs = CASES["dit"].build, CASES["dit"].draw(8)
    target = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    return [
        Example(
            tuple(a[i : i + 2] for a in inputs.args),
            {k: v[i : i + 2] for k, v in inputs.kwargs.items()},
            target[i : i + 2],
        )
        for i in range(0, 8, 2)
    ]


def joined() -> list[Any]:
    """The same rows as two examples of four."""
    from exitkit.training.batches import Example

    parts = shards()
    return [
        Example(
            tuple(torch.cat(pair) for pair in zip(a.args, b.args, strict=True)),
            {k: torch.cat([a.kwargs[k], b.kwargs[k]]) for k in a.kwargs},
            torch.cat([a.target, b.target]),
        )
        for a, b in zip(parts[::2], parts[1::2], strict=True)
    ]


def fitted(examples: list[Any], accelerator: Any) -> dict[str, torch.Tensor]:
    """The heads of a DiT after two steps."""
    model, inputs = CASES["dit"].make()
    torch.manual_seed(0)
    wrapped = ek.wrap(model, example_inputs=inputs)
    before = {k: v.clone() for k, v in wrapped.heads.state_dict().items()}
    ek.fit(wrapped, examples, steps=2, progress=False, accelerator=accelerator)
    after = {k: v.detach().clone() for k, v in wrapped.heads.state_dict().items()}
    require(any(not torch.equal(before[k], after[k]) for k in after), "no step was made")
    return after


@pytest.mark.slow
def test_two_processes_fit_the_heads_of_a_dit_as_one_does(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    paths = {"root": str(ROOT), "folder": str(tmp_path)}
    script.write_text(textwrap.dedent(TWO).format(port="29517", **paths))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300
    )
    require(done.returncode == 0, done.stderr[-3000:])
    first, second, one = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("0", "1", "one")
    )
    for key, value in first.items():
        require(torch.equal(value, second[key]), f"{key} differs between the processes")
        same = torch.allclose(value.float(), one[key].float(), atol=1e-5)
        require(same, f"{key} differs from one process")
    require(
        any(not torch.allclose(v.float(), one[k] * 1.01, atol=1e-5) for k, v in first.items()),
        "parameters are all zero, so nothing was compared",
    )
