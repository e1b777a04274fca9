"""Forwards of experiments are bounded, and change outputs in a way that the backbone bears."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from exitkit.surgery.dry_run import DryRun
from exitkit.surgery.experiments import Experiment
from exitkit.surgery.inputs import bind, signature_of
from exitkit.surgery.trials import Undecided, rows_at_once
from tests.landing_networks import TOKENS, Chain, example
from tests.surgery.test_read_graph import seeded, trials_on

SINGLE = [Experiment({(n, "hidden"): 1.0}) for n in range(1, 6)]


# Not in a closure: what the hooks of a network hold is put back behind every forward.
SEEN: list[int] = []


def rows_seen(net: nn.Module) -> list[int]:
    """Rows of every forward from now on."""
    SEEN.clear()
    net.register_forward_pre_hook(lambda m, args: SEEN.append(len(args[0])))
    return SEEN


def test_no_forward_has_more_rows_than_said_and_findings_do_not_depend_on_it() -> None:
    found = []
    for most in (4, 5, 16):
        net = seeded(Chain)
        trials = trials_on(net, TOKENS, most)
        seen = rows_seen(net)
        found.append([f.readers for f in trials.run(SINGLE)])
        assert max(seen) <= most and sum(seen) == trials.rows and len(seen) == trials.forwards
    assert found == [[{2}, {3}, {4}, {5}, {6}]] * 3


def test_a_pair_of_one_base_stays_in_one_forward() -> None:
    net = seeded(Chain)
    trials = trials_on(net, TOKENS, 4)
    seen = rows_seen(net)
    trials.run([Experiment(base=0), Experiment(base=0, scale=1.0), *SINGLE])
    assert seen[0] == 4 and max(seen) == 4


@pytest.mark.parametrize(("variant", "change"), [("", "noise"), ("positive", "scale")])
def test_the_first_way_that_runs_is_kept(variant: str, change: str) -> None:
    trials = trials_on(seeded(Chain, variant), TOKENS)
    assert [f.readers for f in trials.run(SINGLE)] == [{2}, {3}, {4}, {5}, {6}]
    assert trials._change == change


class Known(Chain):
    """Hidden states that no input has are refused, as look-ups of codes refuse them."""

    known: list[torch.Tensor]

    def forward(self, x, t):
        x = self.stem(x)
        for at, block in enumerate(self.blocks):
            x = block(x)
            while len(self.known) <= at:
                self.known.append(x.detach()[:, 0, 0])
            if not all(bool(torch.isclose(v, self.known[at], atol=1e-4).any()) for v in x[:, 0, 0]):
                raise ValueError("an unknown code")
        return self.out(x)


def test_rows_are_exchanged_where_nothing_else_runs() -> None:
    net = seeded(Chain)
    trials = trials_on(net, TOKENS)
    net.__class__, net.known = Known, []
    with torch.no_grad():
        net(*example(TOKENS))
    assert [f.readers for f in trials.run(SINGLE[:1])] == [{2}]
    assert trials._change == "exchange"


def test_nothing_is_guessed_where_no_change_runs() -> None:
    net = seeded(Chain)
    trials = trials_on(net, TOKENS)
    net.blocks[2].register_forward_hook(lambda *_: (_ for _ in ()).throw(ValueError("brittle")))
    with pytest.raises(Undecided, match="does not run with changed.*noise: ValueError: brittle"):
        trials.run(SINGLE)
    with pytest.raises(Undecided, match="draws numbers"):
        trials_on(seeded(Chain, "draws"), TOKENS).run(SINGLE)


def test_rows_follow_the_example_the_weights_and_what_a_row_holds() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).eval()
    large = bind(signature_of(net.forward), (torch.zeros(2, 2**22, 8),), {})
    calls = DryRun(net, fingerprints=False).run(large).calls
    assert rows_at_once(net, calls, 2, 1) == 4  # a quarter of a GiB each: no more than needed
    assert rows_at_once(net, calls, 2, 6) == 6
    assert rows_at_once(net, calls, 2, 64) == 16
    small = DryRun(net).run(bind(signature_of(net.forward), (torch.zeros(2, 8),), {})).calls
    assert rows_at_once(net, small, 2, 1) == 16
