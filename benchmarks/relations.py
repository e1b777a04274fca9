"""Where a module that a library names lies relative to the stages, read off the dry run.

No model is known by name here. A named module is a stage, holds stages, lies inside one, runs before
the first, behind the last or between two of them, does not see the noisy input, does not run, or
is not there; each of these is a reason why the lists differ.
"""

from __future__ import annotations

from torch import nn

from exitkit.surgery.dry_run import moved
from exitkit.surgery.probe import Probe
from exitkit.surgery.spec import Plan, Stage

SAME = "is a stage"
PART = "is one of the calls that make up a stage; rows leave behind the last of them"
PREFIX = "is a stage, under a path that the library leaves the beginning of out"
ENDS = "lies inside one of our stages and makes the very tensor that rows leave with"
INSIDE = "lies inside one of our stages, which is called, and so skipped, as a whole"
HOLDS = "holds several blocks that are called one by one: every one is a boundary, its end included"
WIDER = "holds our stages, and layers behind the last of them"
STEM = "runs before the first block: no depth yet at which a row could leave"
TAIL = "runs behind the last block: part of the tail that every row goes through"
AFTER = "has no weights and runs behind a stage: the boundary lies in front of it"
ASIDE = "does not see the noisy input: no depth of the path lies there"
IDLE = "is not run by the forward in this configuration"
ABSENT = "is not the path of any module of the model"
UNKNOWN = "does not occur in this configuration"
BETWEEN = "runs between two stages"

NO_DIFFERENCE = (SAME, UNKNOWN)


class Places:
    """Places of the modules of one model relative to its stages.

    Arguments:
        model: The model.
        plan: Its plan.
        seen: The dry runs that the plan rests on.
    """

    def __init__(self, model: nn.Module, plan: Plan, seen: Probe) -> None:
        self.plan = plan
        self.modules = dict(model.named_modules())
        self.calls = seen.base.calls
        self._others = seen.perturbed.calls
        index = {(c.path, c.nth): i for i, c in enumerate(self.calls)}
        self.stage_of: dict[int, Stage] = {
            index[call.path, call.nth]: stage for stage in plan.stages for call in stage.calls
        }
        self._rejected = dict(plan.rejected)
        self._macs = [call.macs for call in seen.other.calls]

    def of(self, path: str) -> str:
        """The place of a module, in words that go on behind its name.

        Arguments:
            path: Its dotted path.
        """
        if path not in self.modules or not path:
            return ABSENT if self.resolve(path) == path else PREFIX
        stages = [s for i, s in self.stage_of.items() if self.calls[i].path == path]
        if stages:
            return SAME if stages[-1].calls[-1].path == path else PART
        if path in {s.path.split("#")[0] for s in self.plan.stages}:
            return SAME
        held = [i for i in self.stage_of if self.calls[i].path.startswith(f"{path}.")]
        own = [i for i, c in enumerate(self.calls) if c.path == path]
        if held:
            ends = not own or self._made(own[-1]) & self._made(max(held))
            return HOLDS if ends else WIDER
        inner = [i for i, c in enumerate(self.calls) if f"{c.path}.".startswith(f"{path}.")]
        return self._of_calls(path, own or inner)

    def _of_calls(self, path: str, calls: list[int]) -> str:
        if not calls:
            return IDLE
        around = [stage for i in calls if (stage := self._around(i)) is not None]
        if around:
            last = max(i for i, stage in self.stage_of.items() if stage is around[-1])
            return ENDS if self._made(calls[-1]) & self._made(last) else INSIDE
        if not any(self._sees(i) for i in calls):
            return ASIDE
        weights = any(p.numel() for p in self.modules[path].parameters())
        if max(calls) < min(self.stage_of):
            return STEM
        if not weights:
            return AFTER
        if min(calls) > max(self.stage_of):
            return TAIL
        why = next((why for p, why in self._rejected.items() if p.startswith(path)), None)
        return f"{BETWEEN} ({why})" if why else BETWEEN

    def resolve(self, path: str) -> str:
        """The path of the stage that a library means where it leaves out the beginning; or as given.

        Arguments:
            path: Dotted path as the library gives it.
        """
        if path in self.modules or not path:
            return path
        return next((s.path for s in self.plan.stages if s.path.endswith(f".{path}")), path)

    def _made(self, call: int) -> set[int]:
        return {leaf.token for leaf in self.calls[call].outputs.values()}

    def _sees(self, call: int) -> bool:
        a, b = self.calls[call].outputs, self._others[call].outputs
        return any(moved(leaf, b[p]) for p, leaf in a.items() if p in b)

    def _around(self, call: int) -> Stage | None:
        """The stage that a call runs in, if any."""
        at: int | None = call
        while at is not None:
            if at in self.stage_of:
                return self.stage_of[at]
            at = self.calls[at].parent
        return None

    def instances(self, class_name: str) -> list[str]:
        """Paths of the modules of a class."""
        return [p for p, m in self.modules.items() if type(m).__name__ == class_name]

    def grid(self, stage: Stage) -> tuple[int, ...]:
        """Shape of the hidden state behind a stage, without the channels."""
        hidden = self.plan.boundaries[stage.index - 1].hidden
        return tuple(n for axis, n in enumerate(hidden.shape) if axis != hidden.channel_axis)

    def share(self, paths: list[str]) -> float:
        """Part of the MACs of one forward that the stages' calls of these modules take, in [0, 1]."""
        stages = {i for i in self.stage_of if self.calls[i].path in paths}
        return sum(self._macs[i] for i in stages) / max(self._macs[0], 1.0)
