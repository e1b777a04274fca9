"""Eight lines from a pipeline to saved exits, on one tiny pipeline of each family.

Three of them run with `make test`, all with `make slow ARGS="-m pipelines"`, each with a process of its own
that loads what was saved.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import exitkit as ek
from exitkit.policies import NeverExit
from tests.tiny_pipelines import PipelineCase, case, models

ROOT = Path(__file__).parents[2]
BUDGET, TOLERANCE = 0.6, 0.02
FAMILIES = {
    "Stable Diffusion": "sd",
    "SDXL": "sdxl",
    "SD3": "sd3",
    "Flux": "flux",
    "Kandinsky 2.2": "kandinsky",
    "PixArt": "pixart",
    "DiT": "dit",
    "Sana": "sana",
    "Wan 2.1": "wan21",
    "Wan 2.2": "wan",
    "LTX": "ltx",
    "Stable Audio": "audio",
    "Stable Cascade": "prior",
    "DDPM": "ddpm",
}
DEFAULT = ("sd3", "dit", "wan")

LOADING = """
    import sys
    import torch
    import exitkit as ek
    from tests.pipelines.test_story import drawn
    from tests.tiny_pipelines import case

    one = case(sys.argv[1])
    pipe = one.make()
    ek.load(pipe, sys.argv[2])
    torch.save(drawn(one, pipe), sys.argv[3])
"""


def steps(one: PipelineCase) -> int:
    """Steps of a trajectory: fewer with `make test`."""
    return 10 if one.id in DEFAULT else 20


def drawn(one: PipelineCase, pipe: Any) -> Tensor:
    """What the pipeline draws when a user calls it."""
    call = {**one.call(2), "num_inference_steps": steps(one)}
    return torch.as_tensor(pipe(**call, generator=torch.Generator().manual_seed(7))[0])


def loaded_elsewhere(one: PipelineCase, folder: Path) -> Tensor:
    """The same call in a fresh process, with exits loaded from a folder."""
    result = folder.parent / "drawn.pt"
    script = [sys.executable, "-c", textwrap.dedent(LOADING), one.id, folder, result]
    threads = str(torch.get_num_threads())  # another number may round otherwise
    subprocess.run(script, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": threads})
    return torch.load(result)


@pytest.mark.pipelines
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in DEFAULT else [pytest.mark.slow]) for n in FAMILIES.values()],
    ids=list(FAMILIES),
)
def test_from_wrap_to_a_fresh_process(name: str, tmp_path: Path) -> None:
    one = case(name)
    pipe = one.make()
    calls, shared = one.requests()
    shared["num_inference_steps"] = steps(one)
    fewer = 3 * steps(one) // 5
    bare = drawn(one, pipe)

    model = ek.wrap(pipe, "carried", example_inputs=one.call(1))
    sampler = ek.PipelineSampler(pipe, calls, rows=3, **shared)
    model.policy = NeverExit()
    assert torch.equal(drawn(one, pipe), bare), "without exits, the bits of the bare call"
    ek.fit(model, sampler, steps=4, progress=False)
    found = ek.calibrate(model, sampler, budget=BUDGET, policy="schedule", seeds=3, progress=False)
    model.policy = found.policy
    early, trace = drawn(one, pipe), model.trace
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "compare: ")
        table = ek.compare(
            [ek.Entry("mine", model)],
            sampler,
            seeds=3,
            metrics=ek.Metrics(exits=False),
            fewer_steps=[fewer],
            progress=False,
        )
    model.save_pretrained(tmp_path / "exits")

    # Cost comes in lumps: what costs more than the policy found is beyond the budget, or farther off.
    limit = BUDGET * (1 + TOLERANCE)
    assert found.cost <= limit
    dearer = [m for m in found.history if found.cost < m.cost <= limit]
    assert all(m.error >= found.error for m in dearer)
    assert any(m.cost > limit for m in found.history)
    assert trace.cost < 1 and not torch.equal(early, bare), "nobody left early"
    rows = {row.name: row for row in table.rows}
    assert rows["mine"].cost == pytest.approx(found.cost, abs=1e-3)
    assert {"full", "mine", f"fewer steps ({fewer})"} <= rows.keys()
    assert torch.equal(drawn(one, pipe), early)
    if name not in DEFAULT or name == DEFAULT[0]:
        assert torch.equal(loaded_elsewhere(one, tmp_path / "exits"), early)
    else:  # in this process: another one takes seconds to begin
        fresh = one.make()
        ek.load(fresh, tmp_path / "exits")
        assert torch.equal(drawn(one, fresh), early)
    for wrapped in models(model):
        assert wrapped.calibration == found
    ek.unwrap(pipe)
    one.assert_bare(pipe)
    assert torch.equal(drawn(one, pipe), bare)
