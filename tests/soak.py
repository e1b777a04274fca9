"""Many requests at once, for minutes: `python -m tests.soak --minutes 10` (`make soak`).

Four threads call one wrapped network with batches of any size, and shallow copies of one wrapped pipeline,
each request under a policy of its own. Every row is compared with that row alone, every sample with the one
that a single thread drew, and the memory of the process after a third of the time with that at the end.
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import exitkit as ek
from exitkit.policies import FixedExit, Interval, NeverExit, Policy
from tests.backbones import case as backbone
from tests.backbones import prediction
from tests.tiny_pipelines import case

ROWS, SEEDS = 12, 4
POLICIES: tuple[Policy, ...] = (NeverExit(), FixedExit(1), FixedExit(2))
IN_LOOPS: tuple[Policy, ...] = (NeverExit(), FixedExit(1), Interval(2))


@dataclass
class Report:
    """What happened.

    Attributes:
        requests: Requests answered, by kind.
        wrong: What was wrong.
        grown: Memory at the end less memory after a third of the time, MiB; NaN where it cannot be read.
    """

    requests: dict[str, int] = field(default_factory=lambda: {"network": 0, "pipeline": 0})
    wrong: list[str] = field(default_factory=list)
    grown: float = float("nan")


Request = Callable[[random.Random], str | None]


def network_requests() -> Request:
    """Batches of 1 to 6 rows in any order through one wrapped network."""
    one = backbone("uvit")
    args, _ = one.inputs(ROWS)
    model = ek.wrap(one.make(), "relative", example_inputs=args)
    model.heads.mark_fitted()

    def run(policy: Policy, rows: list[int]) -> Tensor:
        with torch.no_grad(), model.using(policy):
            return prediction(model(*(a[rows] for a in args)))

    alone = {p: torch.cat([run(p, [row]) for row in range(ROWS)]) for p in POLICIES}
    assert not torch.allclose(alone[POLICIES[0]], alone[POLICIES[1]], atol=1e-3), (
        "nobody left early"
    )

    def request(chance: random.Random) -> str | None:
        rows = chance.sample(range(ROWS), chance.randint(1, 6))
        policy = chance.choice(POLICIES)
        right = torch.allclose(run(policy, rows), alone[policy][rows], rtol=1e-3, atol=1e-4)
        return None if right else f"rows {rows} under {policy}"

    return request


def pipeline_requests(copied: Callable[[Any], Any]) -> Request:
    """Calls of copies of one wrapped pipeline."""
    one = case("sd3")
    pipe = one.make()
    model = one.wrap(pipe)

    def run(own: Any, policy: Policy, seed: int) -> Tensor:
        with model.using(policy):
            return one.run(own, count=1, seed=seed)

    drawn = {(p, seed): run(pipe, p, seed) for p in IN_LOOPS for seed in range(SEEDS)}
    assert not torch.equal(drawn[IN_LOOPS[0], 0], drawn[IN_LOOPS[2], 0]), "nobody left early"

    def request(chance: random.Random) -> str | None:
        policy, seed = chance.choice(IN_LOOPS), chance.randrange(SEEDS)
        right = torch.equal(run(copied(pipe), policy, seed), drawn[policy, seed])
        return None if right else f"seed {seed} under {policy}"

    return request


def shallow(pipe: Any) -> Any:
    """What a server does for a request: the same networks, a scheduler of its own."""
    other = copy.copy(pipe)
    other.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    return other


def memory() -> float:
    """Memory of this process, MiB; NaN where it cannot be read."""
    file = Path("/proc/self/statm")
    return int(file.read_text().split()[1]) * 4096 / 2**20 if file.exists() else float("nan")


def soak(
    seconds: float, threads: int = 4, copied: Callable[[Any], Any] = shallow, seed: int = 0
) -> Report:
    """Sends requests from several threads for a while.

    Arguments:
        seconds: How long; each thread answers at least two requests of each kind.
        threads: How many threads.
        copied: Makes the pipeline of a request.
        seed: Of the choice of requests.

    Returns:
        What happened.
    """
    kinds = {"network": network_requests(), "pipeline": pipeline_requests(copied)}
    report, lock, started = Report(), threading.Lock(), time.monotonic()
    settled: list[float] = []

    def work(number: int) -> None:
        chance, done = random.Random(seed + number), 0
        while done < 4 or time.monotonic() - started < seconds:
            name = ("network", "pipeline")[done % 2]
            try:
                wrong = kinds[name](chance)
            except (
                Exception
            ) as error:  # told beside what is wrong, with the other threads' findings
                wrong = f"{type(error).__name__}: {error}"
            done += 1
            with lock:
                report.requests[name] += 1
                report.wrong += [f"{name}: {wrong}"] if wrong else []
                if not settled and time.monotonic() - started > seconds / 3:
                    settled.append(memory())

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    report.grown = memory() - settled[0] if settled else float("nan")
    return report


def main() -> int:
    """Prints what happened; 1 where something was wrong or memory grew by more than 64 MiB."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--threads", type=int, default=4)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    report = soak(60 * asked.minutes, asked.threads)
    print(f"{report.requests}, wrong: {len(report.wrong)}, memory grew by {report.grown:.0f} MiB")
    for line in report.wrong[:20]:
        print(f"  {line}")
    return int(bool(report.wrong) or report.grown > 64)


if __name__ == "__main__":
    sys.exit(main())
