"""From a call tree to stages: which calls are the repeated unit.

The noisy path first (calls whose output moves with the noisy input), then the level (descend while one
child holds nearly all parameters), then groups: calls under the same index of the outermost
ModuleList, ModuleDict or Sequential are one stage; modules between two stages that weigh as much as a
stage (the middle of a UNet) are stages too.
"""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass

from torch import nn

from exitkit.errors import UnsupportedBackboneError
from exitkit.surgery.call_tree import CallTree
from exitkit.surgery.dry_run import CallRecord, DryRun

_DESCEND = 0.8  # share of the parameters that makes a child the whole story
_BETWEEN = 0.25  # size of a module between stages, in median stages, that makes it one of them
_STEM = 0.1  # size of the parts of an outer container, in median stages, that makes it stem or tail
_CLASS = 0.05  # size of all modules of a class that comes again, in those of the largest, to count
_BODY = 0.5  # share of a level's parameters that stages have to hold between them


@dataclass(frozen=True)
class Group:
    """The calls of one stage, as indices into the dry run's records."""

    path: str
    container: str | None
    calls: tuple[int, ...]


@dataclass(frozen=True)
class Grouping:
    """The stages found and what was looked at and refused."""

    level: str
    groups: tuple[Group, ...]
    rejected: tuple[tuple[str, str], ...]


def _parameters(module: nn.Module) -> int:
    """Parameters that are computed with: tables of embeddings are looked up, however large."""
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    return sum(p.numel() for p in module.parameters() if id(p) not in tables)


def _is_primitive(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def find_stages(run: DryRun, other: DryRun) -> Grouping:
    """Groups the calls on the noisy path into stages.

    Arguments:
        run: Dry run of the backbone.
        other: Dry run on another noisy input.

    Returns:
        The stages in execution order.

    Raises:
        UnsupportedBackboneError: If nothing repeats; the message lists what was seen.
    """
    tree = CallTree(run, other)
    node, seen, outer = 0, list[str](), None
    while True:
        record = run.calls[node]
        level = tree.level(node)
        weights = [_parameters(run.calls[i].module) for i in level]
        total = sum(
            {id(run.calls[i].module): w for i, w in zip(level, weights, strict=True)}.values()
        )
        heavy = max(zip(weights, level, strict=True), default=(0, -1))
        grouping = _group(tree, record.path, level)
        seen.append(
            f"{record.path or type(record.module).__name__}: {len(level)} calls on the noisy path"
        )
        # What is called again and again is a block, not a level.
        deeper = heavy[1] >= 0 and tree.opens(heavy[1]) and tree.visits(heavy[1]) == 1
        # Single layers round the one heavy module are projections, and the blocks are in there.
        others = {i for g in grouping.groups for i in g.calls} - {heavy[1]}
        lone = heavy[0] > _BODY * total and all(_is_primitive(run.calls[i].module) for i in others)
        # A stage may hold most parameters, as the last of a CNN does; it is a stage all the same.
        stage = len(grouping.groups) > 1 and any(
            g.container is None and g.calls == (heavy[1],) for g in grouping.groups
        )
        deeper = deeper and (lone or not stage)
        if deeper and (heavy[0] > _DESCEND * total or len(grouping.groups) < 2 or lone):
            in_list = tree.container(run.calls[heavy[1]].path, record.path)
            only = isinstance(record.module, nn.Sequential) and isinstance(
                run.calls[heavy[1]].module, nn.Sequential
            )
            if len(grouping.groups) < 2 or in_list is None or only:
                node = heavy[1]
                outer = grouping if len(grouping.groups) > 1 else outer
                continue
        if len(grouping.groups) < 2 and outer is not None:
            grouping = outer
        if len(grouping.groups) >= 2:
            return grouping
        silent = [
            f" Block {call.path!r} returns nothing and writes into what it is given "
            f"({', '.join(call.replaced)}), where no exit finds it: let it return what it makes."
            for call in run.calls
            if call.replaced and not call.outputs
        ]
        silent += [
            f" Block {call.path!r} returns complex numbers, and heads read real ones: let it take and "
            "return torch.view_as_real(h)."
            for call in run.calls[1:]
            if any(leaf.dtype.is_complex for leaf in call.outputs.values())
        ]
        raise UnsupportedBackboneError(
            f"{type(run.module).__name__} has no blocks that exits could skip: no list of modules, "
            f"repeated call or repeated class on the path from the noisy input to the output "
            f"({'; '.join(seen)}). Pass the part of the model that holds the blocks, or declare them "
            f"with an adapter: ek.Adapter(name, matches, blocks=...).{next(iter(silent), '')}"
        )


def _group(tree: CallTree, below: str, level: list[int]) -> Grouping:
    calls = tree.calls
    rejected: list[tuple[str, str]] = []
    listed = [(i, c) for i in level if (c := tree.container(calls[i].path, below)) is not None]
    if any(not _is_primitive(calls[i].module) for i, _ in listed):
        # A norm in front of a block of its index is part of the stage: callers add the block's output
        # to what the norm took.
        kept = {
            i
            for at, (i, place) in enumerate(listed)
            if not _is_primitive(calls[i].module)
            or not _mixes(calls[i])
            and any(p == place and not _is_primitive(calls[j].module) for j, p in listed[at:])
        }
        rejected += [
            (calls[i].path, "a single layer beside blocks") for i, _ in listed if i not in kept
        ]
        listed = [(i, c) for i, c in listed if i in kept]
    else:
        # A plain stack of layers: the ones that compute are the stages.
        listed = [(i, c) for i, c in listed if _parameters(calls[i].module) and _mixes(calls[i])]
    groups = _with_weights(calls, _by_index(calls, listed), rejected)
    groups = _without_end(calls, groups, 0, "a small stem in front of the blocks", rejected)
    groups = _without_end(calls, groups, -1, "a small tail behind the blocks", rejected)
    groups = [part for group in groups for part in _unpacked(tree, group)]
    rest = [i for i in level if not _is_primitive(calls[i].module)]
    whole = sum({calls[i].path: _parameters(calls[i].module) for i in rest}.values())
    if len(groups) < 2 or sum(size_of(calls, g) for g in groups) < _BODY * whole:
        groups = _repeated(calls, rest) or groups
    if groups:
        between = _between(calls, level, groups, rejected)
        groups = sorted([*groups, *between], key=lambda g: g.calls[0])
    return Grouping(below, tuple(groups), tuple(rejected))


def size_of(calls: list[CallRecord], group: Group) -> int:
    """Parameters of the modules of a stage."""
    return sum(_parameters(calls[i].module) for i in group.calls)


def _with_weights(
    calls: list[CallRecord], groups: list[Group], rejected: list[tuple[str, str]]
) -> list[Group]:
    """Drops groups without a weight matrix, if others have one."""
    weightless = [g for g in groups if not any(_matrix(calls[i].module) for i in g.calls)]
    if len(weightless) == len(groups):
        return groups
    rejected += [(g.path, "no weight matrix") for g in weightless]
    return [g for g in groups if g not in weightless]


def _without_end(
    calls: list[CallRecord],
    groups: list[Group],
    end: int,
    why: str,
    rejected: list[tuple[str, str]],
) -> list[Group]:
    """Drops the container at one end (0 or -1) if its parts are far smaller than the others."""
    at_end = [g for g in groups if g.container == groups[end].container]
    others = [g for g in groups if g.container != groups[end].container]
    if len(others) < 2:
        return groups
    # The first level of a CNN is small too, but of the same blocks as the others.
    kinds = {type(calls[i].module) for g in others for i in g.calls}
    if any(type(calls[i].module) in kinds for g in at_end for i in g.calls):
        return groups
    usual = statistics.median(size_of(calls, g) for g in others)
    if statistics.mean(size_of(calls, g) for g in at_end) >= _STEM * usual:
        return groups
    rejected += [(g.path, why) for g in at_end]
    return others


def _unpacked(tree: CallTree, group: Group) -> list[Group]:
    """A list all of whose entries are blocks of one kind is a list of blocks and no block."""
    entry = tree.root.get_submodule(group.path)
    members = [tree.calls[i].module for i in group.calls]
    if len(members) < 2 or not isinstance(entry, nn.ModuleList) or list(entry) != members:
        return [group]
    kinds = {(type(m), tuple((n, p.shape) for n, p in m.named_parameters())) for m in members}
    if len(kinds) > 1:
        return [group]
    return [Group(tree.calls[i].path, group.path, (i,)) for i in group.calls]


def _matrix(module: nn.Module) -> bool:
    return any(p.ndim > 1 for p in module.parameters())


def _mixes(call: CallRecord) -> bool:
    """Whether a single layer has a weight matrix (a norm does not)."""
    return any(p.ndim > 1 for p in call.module.parameters(recurse=False))


def _by_index(calls: list[CallRecord], listed: list[tuple[int, tuple[str, str]]]) -> list[Group]:
    """Neighbouring calls under one container index are a stage; a second visit is a new one."""
    found: list[tuple[str, str, list[int]]] = []
    for i, (container, index) in listed:
        again = found and any(calls[j].path == calls[i].path for j in found[-1][2])
        if found and found[-1][1] == index and not again:
            found[-1][2].append(i)
        else:
            found.append((container, index, [i]))
    return [Group(index, container, tuple(members)) for container, index, members in found]


def _repeated(calls: list[CallRecord], blocks: list[int]) -> list[Group]:
    """No container: one module called several times, or attributes of classes that come again."""
    paths = [calls[i].path for i in blocks]
    best = max(paths, key=paths.count, default=None)
    if best is not None and paths.count(best) > 1:
        return [Group(best, None, (i,)) for i in blocks if calls[i].path == best]
    kinds = [type(calls[i].module) for i in blocks]
    found = [i for i in blocks if kinds.count(type(calls[i].module)) > 1]
    weight: Counter[type[nn.Module]] = Counter()
    for i in found:
        weight[type(calls[i].module)] += _parameters(calls[i].module)
    # Stem convolutions of one class come again too, but all together they are small.
    least = _CLASS * max(weight.values(), default=0)
    return [
        Group(calls[i].path, None, (i,)) for i in found if weight[type(calls[i].module)] >= least
    ]


def _between(
    calls: list[CallRecord], level: list[int], groups: list[Group], rejected: list[tuple[str, str]]
) -> list[Group]:
    sizes = [sum(_parameters(calls[i].module) for i in g.calls) for g in groups]
    taken = {i for g in groups for i in g.calls}
    first, last = min(taken), max(taken)
    out = []
    for i in level:
        if i in taken or not first < i < last or calls[i].path in dict(rejected):
            continue
        size = _parameters(calls[i].module)
        if size >= _BETWEEN * statistics.median(sizes) and not _is_primitive(calls[i].module):
            out.append(Group(calls[i].path, None, (i,)))
        elif size:
            rejected.append((calls[i].path, "between blocks, but small"))
    return out
