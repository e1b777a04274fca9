"""The object a user holds: a backbone with exits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from typing_extensions import override

from exitkit.config import ExitConfig
from exitkit.execution.executor import Executor
from exitkit.execution.patching import ForwardOverride
from exitkit.execution.trace import Trace
from exitkit.execution.trajectory import Trajectory, opened, tell_of_exits, trajectory_of
from exitkit.heads.build import Heads
from exitkit.model.analysis import Analysis
from exitkit.model.deciding import Deciding
from exitkit.model.fixed_depth import FixedDepth, fixed_depth
from exitkit.model.keeping import Keeping
from exitkit.modes.compiled import uncompiled
from exitkit.persistence.example import describe
from exitkit.persistence.hub import local_folder
from exitkit.persistence.read import Saved
from exitkit.persistence.write import Exits
from exitkit.policies import Calibration, NeverExit, Policy, policy_from_dict
from exitkit.summary import Exit, count_parameters, describe_exits, summarise, time_exits
from exitkit.surgery.adapter import Adapter
from exitkit.surgery.inputs import Inputs
from exitkit.surgery.plan import make_plan
from exitkit.surgery.spec import Plan


class _Mine(threading.local):
    """What the calls of one thread left: requests share a model, and each reads its own cost."""

    def __init__(self) -> None:
        self.traces: WeakKeyDictionary[nn.Module, Trace | None] = WeakKeyDictionary()


_MINE = _Mine()


class ExitModel(Analysis, Deciding, Keeping, nn.Module):
    """A backbone whose rows may leave early. Made by `wrap`; undone by `unwrap`.

    Called like the backbone, and returns what the backbone returns.

    Attributes:
        backbone: The wrapped backbone, the same object; usable by itself as before.
        given: What `wrap` was given and `unwrap` returns: the backbone, or it under `torch.compile`.
        heads: The heads.
        exit_config: The config of the exits. `config` is the backbone's own, where it has one.
        plan: What surgery found.
        calibrations: What `calibrate` found since the last `fit`, in order.
        fitted: Description of the sampler whose rollouts the exits were fitted on; None if on data.
        predicts: What its fits took the prediction for (`"epsilon"`, `"v_prediction"`, `"sample"`,
            `"flow_prediction"`), which samplers are held to; None where nobody has said.
        example: Description of the call that it was wrapped with, from which one of the kind is made.
        notices: Names of warnings that were given and are not repeated.
    """

    def __init__(
        self, backbone: nn.Module, plan: Plan, config: ExitConfig, heads: Heads | None = None
    ) -> None:
        super().__init__()
        heads = Heads.paying(plan, config) if heads is None else heads
        heads.place_like(backbone)
        self.backbone, self.heads, self.given = backbone, heads, (backbone,)
        self.exit_config, self.plan = config, plan
        self.calibrations: list[Calibration] = []
        self.fitted: dict[str, Any] | None = None
        self.predicts: str | None = None
        self.example: dict[str, Any] | None = None
        self.notices: set[str] = set()
        self._policy: Policy = policy_from_dict(config.policy) if config.policy else NeverExit()
        self._last: Trace | None = None
        self.training = backbone.training  # not train(): that would reach into the backbone
        heads.train(backbone.training)
        self._override: ForwardOverride | None = None
        # Last: whatever failed above has left the backbone untouched.
        self._executor = Executor(backbone, plan, heads, config)

    def __getattr__(self, name: str) -> Any:
        """Looks on the backbone for what the wrapper does not have."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "backbone" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self.backbone, name)

    @property
    @override
    def exits(self) -> list[Exit]:
        return describe_exits(self._executor.layout)

    @property
    def _trace(self) -> Trace | None:
        return _MINE.traces.get(self, self._last)

    @_trace.setter
    def _trace(self, trace: Trace | None) -> None:
        self._last = _MINE.traces[self] = trace

    @property
    def trace(self) -> Trace:
        """Accounts of the last call, or of the last trajectory as a whole; empty while suspended.

        In a thread that has called the model those of its own calls, else those of any thread.
        """
        kept = None if self._executor.suspended else self._trace
        return kept or self._executor.layout.new_trace()

    def note_example(self, example: Any) -> None:
        """Notes the call for which the plan was made: calls of another form are tried first.

        Arguments:
            example: The example inputs, in any of their forms.
        """
        inputs, executor = Inputs.of(example), self._executor
        executor.forms.note(executor.analyst, executor.bind(inputs.args, inputs.kwargs))

    def forward(self, *args: Any, output_exits: bool = False, **kwargs: Any) -> Any:
        """Runs the backbone with exits.

        Arguments:
            args: The backbone's positional arguments.
            output_exits: Return an `ExitOutput` with the prediction of every exit instead. Nobody
                leaves then.
            kwargs: The backbone's keyword arguments.

        Returns:
            The backbone's own output type, each row from the exit where it left.

        Raises:
            ShapeError: If the batch is empty.
        """
        if output_exits:
            return self._executor.all_exits(args, kwargs)
        if self._executor.suspended:
            return self.backbone(*args, **kwargs)
        return self._run(self.backbone, args, kwargs)

    def _run(self, through: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """As `forward`, through the backbone or its own forward if its hooks have fired already."""
        trajectory = trajectory_of(self)
        policy = self.policy
        tell_of_exits(policy, self.heads, self.notices, inside=trajectory is not None)
        output, self._trace = self._executor.run(through, args, kwargs, policy, trajectory)
        return output

    def trajectory(self, steps: int | None = None) -> AbstractContextManager[Trajectory]:
        """Opens the state that one step leaves for a later one.

        Arguments:
            steps: How many steps are planned, for policies that spread a budget over them.

        Returns:
            A context with the trajectory, `TrajectoryError` if one is open; see `model.trace` later.
        """
        return opened(self, steps)

    def suspended(self) -> AbstractContextManager[None]:
        """Takes the exits out for a while, PEFT's `disable_adapter`: inside, the bare backbone answers.

        The gates leave its blocks, and a pipeline calls its own denoiser again. Contexts may be nested. It
        is a switch of the model, for all threads: no call may be under way when it is turned.

        Returns:
            The context; `AlreadyWrappedError` if the model was undone.
        """
        return self._executor.suspension(self._override)

    @property
    def released(self) -> bool:
        """Whether `unwrap` has undone this model."""
        return self._executor.released

    def compile_blocks(self, **options: Any) -> None:
        """Compiles the forward of every block, with any number of rows.

        The backbone called by itself uses the compiled blocks too, until `unwrap`.

        Arguments:
            options: Options of `torch.compile`; `dynamic=True` if not given.
        """
        self._executor.gates.compile({"dynamic": True, **options})

    def at(self, depth: int) -> FixedDepth:
        """The network of one depth as a plain module, for export, tracing and whole-graph compilation.

        Arguments:
            depth: An exit, 1..K, or `FULL`.

        Returns:
            A module that is called like the backbone and shares its parameters; `unwrap` leaves it.
        """
        return fixed_depth(self.backbone, self._executor.layout, depth)

    def exit_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the heads."""
        return self.heads.parameters()

    def print_trainable_parameters(self) -> None:
        """Prints how many parameters train, in PEFT's words."""
        print(count_parameters(self.backbone, self.heads, self.exit_config.loss.train_backbone))

    def summary(self, example_inputs: Any = None) -> str:
        """What is wrapped, where the exits are and what they cost.

        Arguments:
            example_inputs: As for `wrap`: every exit is timed on them, which takes some forwards.
        """
        given = example_inputs is not None
        times = time_exits(self.backbone, self._executor, example_inputs) if given else None
        return summarise(self._executor.layout, self.exit_config, self.policy, times)

    @override
    def _exits(self) -> Exits:
        return Exits(
            heads=self.heads,
            backbone=self.backbone,
            config=self.exit_config,
            policy=self._policy,
            calibration=self.calibration,
            paths=[e.path for e in self.exits],
            fitted=self.fitted,
            predicts=self.predicts,
            example=self.example,
        )

    @classmethod
    def from_pretrained(
        cls,
        backbone: nn.Module,
        path: str | Path,
        *,
        revision: str | None = None,
        example_inputs: Any = None,
        adapter: Adapter | None = None,
        check_weights: bool = True,
    ) -> ExitModel:
        """As `exitkit.load`, which takes pipelines, too.

        Arguments:
            backbone: The one that the heads were fitted on; weights saved with them are loaded into it.
            path: As for `load`, and so are the others.
            revision: Of a repository.
            example_inputs: As for `wrap`.
            adapter: As for `wrap`.
            check_weights: Refuse a backbone with other weights.

        Returns:
            The wrapped model with its policy.

        Raises:
            CheckpointError: If the folder is damaged or of another backbone, which is left as it was.
        """
        saved = Saved.read(local_folder(path, revision))
        given, backbone = backbone, uncompiled(backbone)
        saved.check(backbone, check_weights)
        example = saved.example_for(backbone, example_inputs)
        plan = saved.as_fitted(make_plan(backbone, example, adapter))
        model = cls(backbone, plan, saved.config, saved.heads_for(plan))
        model.given = (given,)
        try:
            saved.load_weights(model.heads, backbone)
            model.policy = saved.policy
        except BaseException:
            model.release()
            raise
        model.calibrations += filter(None, [saved.calibration])
        told = saved.settings.example
        model.example = told if example_inputs is None else describe(example_inputs, plan.time)
        model.fitted, model.predicts = saved.settings.fitted, saved.settings.predicts
        return model

    def release(self) -> nn.Module:
        """Takes the gates out; a second call ends what was interrupted. Public as `unwrap`.

        Returns:
            The backbone, the same object, as it was before `wrap`.

        Raises:
            AlreadyWrappedError: If it was released before.
        """
        if self._override is None or not self._executor.emptied:
            self._executor.release()
        if self._override is not None:
            self._override.remove()
            self._override = None
        return self.given[0]

    unload = release  # those who come from PEFT look for this name
