"""Kinds of output heads: what each says of itself, and that the heads bear it out."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

import pytest
import torch

import exitkit
from exitkit.config import OutputConfig
from exitkit.heads import (
    CarriedHead,
    OutputKind,
    OwnOutputHead,
    SharedHead,
    Site,
    TailHead,
    output_kind,
)
from exitkit.heads.kinds import register_kind
from tests.heads.specs import FEATURES, IMAGE, LATE, TOKENS, E, hidden_of

NAMES = get_args(OutputConfig.model_fields["kind"].annotation)
AT_EXITS = [name for name in NAMES if name != "completion"]
"""Kinds with heads at boundaries; completion has one for the whole backbone."""
CLASSES = {
    "tail": TailHead,
    "shared": SharedHead,
    "output": OwnOutputHead,
    "carried": CarriedHead,
}
# Name, needs a trajectory, through the tail, fitted on.
FACTS = {
    "tail": (False, True, "examples"),
    "shared": (False, True, "examples"),
    "output": (False, False, "examples"),
    "carried": (True, False, "windows"),
    "completion": (True, False, "states"),
}


def site(landing=TOKENS, at_end=True, hidden=TOKENS):
    return Site(hidden, landing, at_end, IMAGE, IMAGE, E)


def test_every_kind_of_the_config_is_registered():
    assert {name: output_kind(name).name for name in NAMES} == {name: name for name in NAMES}
    assert set(AT_EXITS) == set(CLASSES)


@pytest.mark.parametrize("name", NAMES)
def test_facts(name):
    kind = output_kind(name)
    assert (kind.needs_trajectory, kind.through_tail, kind.fitted_on) == FACTS[name]


@pytest.mark.parametrize("name", AT_EXITS)
def test_classes(name):
    kind = output_kind(name)
    place = site(None if name == "output" else TOKENS)
    assert type(kind.build(place, OutputConfig(kind=name))) is CLASSES[name]


@pytest.mark.parametrize("name", ["tail", "shared"])
def test_without_a_tail_to_reach_heads_make_the_output(name):
    head = output_kind(name).build(site(None), OutputConfig(kind=name))
    assert type(head) is OwnOutputHead


@pytest.mark.parametrize("name", AT_EXITS)
def test_all_heads_are_called_alike(name):
    """With everything by position; what needs a state says so, the others do without."""
    kind = output_kind(name)
    place = site(None if name == "output" else TOKENS)
    head = kind.build(place, OutputConfig(kind=name))
    h, embedding, noisy = hidden_of(TOKENS, 1), torch.zeros(1, E), torch.zeros(1, *IMAGE)
    state = kind.blank_state(place, h)
    assert (state is not None) is kind.needs_trajectory
    out = head(h, embedding, noisy, state)
    assert out.shape == (1, *(IMAGE if name == "output" else TOKENS.shape))
    if kind.through_tail:
        assert torch.equal(out, h)


@pytest.mark.parametrize(
    ("place", "relative"),
    [
        (site(), True),
        (site(at_end=False), False),
        (site(LATE, True, FEATURES), False),
        (site(LATE, False, FEATURES), False),
    ],
)
def test_the_rest_is_carried_where_states_reach_the_end_in_one_shape(place, relative):
    head = output_kind("carried").build(place, OutputConfig(kind="carried"))
    assert head.relative is relative


def test_a_kind_of_ones_own():
    class Nothing(OutputKind):
        name = "nothing, for a test"

        def landing(self, plan, at, config):
            return None

        def build(self, site, config):
            return torch.nn.Identity()

    assert register_kind(Nothing) is Nothing
    assert isinstance(output_kind(Nothing.name), Nothing)
    from exitkit.heads import kinds

    del kinds._KINDS[Nothing.name]


def _compared(path: Path) -> list[int]:
    """Lines that compare something with the name of a kind that needs a trajectory."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare):
            values = [node.left, *node.comparators]
            if any(isinstance(v, ast.Constant) and v.value == "carried" for v in values):
                found.append(node.lineno)
    return found


def test_names_of_kinds_are_compared_in_the_config_alone():
    root = Path(exitkit.__file__).parent
    places = {p.relative_to(root).as_posix(): _compared(p) for p in sorted(root.rglob("*.py"))}
    found = {path: lines for path, lines in places.items() if lines}
    assert set(found) == {"config/fields.py"} and sum(map(len, found.values())) == 1
