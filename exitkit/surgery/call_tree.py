"""The calls on the path from the noisy input to the output: who called whom, and in which container."""

from __future__ import annotations

from torch import nn

from exitkit.surgery.dry_run import DryRun, moved

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


class CallTree:
    """The calls of a dry run that move with the noisy input.

    Arguments:
        run: Dry run of the backbone.
        other: Dry run on another noisy input.
    """

    def __init__(self, run: DryRun, other: DryRun) -> None:
        self.root = run.module
        self.calls = run.calls
        twins = {(call.path, call.nth): call.outputs for call in other.calls}
        # What the other input does not call at all, as experts without tokens, moves with it too.
        self.on_path = [
            (b := twins.get((a.path, a.nth))) is None
            or any(moved(leaf, b[p]) for p, leaf in a.outputs.items() if p in b)
            for a in run.calls
        ]

    def children(self, parent: int) -> list[int]:
        """What a call has called, in order."""
        return [i for i, c in enumerate(self.calls) if c.parent == parent and self.on_path[i]]

    def opens(self, call: int) -> bool:
        """Whether several calls lie below, under any number of wrappers of one module."""
        below = self.children(call)
        while len(below) == 1:
            below = self.children(below[0])
        return len(below) > 1

    def visits(self, call: int) -> int:
        """How often the module of a call runs in one forward."""
        return sum(c.path == self.calls[call].path for c in self.calls)

    def container(self, path: str, below: str) -> tuple[str, str] | None:
        """Outermost container of a path below a level, and the path of the index in it."""
        prefix = f"{below}." if below else ""
        if isinstance(self.root.get_submodule(below), _CONTAINERS):
            return below, prefix + path[len(prefix) :].split(".")[0]
        parts = path[len(prefix) :].split(".")
        for i in range(1, len(parts)):
            above = prefix + ".".join(parts[:i])
            if isinstance(self.root.get_submodule(above), _CONTAINERS):
                return above, f"{above}.{parts[i]}"
        return None

    def level(self, node: int) -> list[int]:
        """Calls on one level: children, with a called Sequential replaced by its own children."""
        below = self.calls[node].path
        if isinstance(self.calls[node].module, nn.Sequential):
            return self.children(node)
        out: list[int] = []
        for child in self.children(node):
            inner = self.children(child)
            named = self.container(self.calls[child].path, below)
            called = isinstance(self.calls[child].module, nn.Sequential)
            if called and self.visits(child) == 1 and named is None and inner:
                out += inner
            else:
                out.append(child)
        return out
