"""The object a user holds: a backbone with exits."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exitkit import persistence
from exitkit.config import ExitConfig, resolve_config
from exitkit.errors import AlreadyWrappedError, ConfigError, ShapeError, TrajectoryError
from exitkit.execution.accounting import Trace
from exitkit.execution.gates import CURRENT, Gate, GateSet
from exitkit.execution.points import ExitPoint, Layout
from exitkit.execution.replay import Recorder, Replay, chosen, stacked
from exitkit.execution.run import Call, OutputTemplate, Run, Unwind
from exitkit.execution.trajectory import Trajectory
from exitkit.heads.build import Heads, count_macs
from exitkit.policies import NeverExit, Policy, policy_from_dict
from exitkit.surgery.adapter import Adapter
from exitkit.surgery.inputs import Bound, bind, signature_of
from exitkit.surgery.planning import make_plan
from exitkit.surgery.spec import Plan
from exitkit.surgery.trees import constants, leaves


@dataclass(frozen=True)
class Exit:
    """One exit, for people.

    Attributes:
        index: Depth of a row that leaves here.
        path: Dotted path of the block before it.
        class_name: Class of that block.
        cost: Part of the full MACs spent when leaving here, output head included.
    """

    index: int
    path: str
    class_name: str
    cost: float


@dataclass
class Recording:
    """A full forward with hidden states kept.

    Attributes:
        output: The backbone's own output.
        prediction: Its prediction, with shape (B, ...).
        hidden: Hidden state at each exit, with shape (B, ...).
        landing: Hidden state where each exit's rows land, with shape (B, ...); exits that land only.
        final: Hidden state at the end of the network, with shape (B, ...).
        noisy: Noisy input, rows first.
        timestep: Timestep of each row on the scale 0..1000, with shape (B,), or None.
    """

    output: Any
    prediction: Tensor
    hidden: dict[int, Tensor]
    landing: dict[int, Tensor]
    final: Tensor
    noisy: Tensor
    timestep: Tensor | None


@dataclass
class ExitOutput:
    """Outputs of all exits, for training and analysis.

    Attributes:
        output: The backbone's own output.
        prediction: Its prediction, with shape (B, ...).
        exits: Prediction of each exit, like `prediction`.
        uncertainty: Uncertainty map of each exit, and of the end where `uncertainty.final` is set.
        timestep: Timestep of each row on the scale 0..1000, with shape (B,), or None.
    """

    output: Any
    prediction: Tensor
    exits: list[Tensor]
    uncertainty: list[Tensor]
    timestep: Tensor | None


class ExitModel(nn.Module):
    """A backbone whose rows may leave early. Made by `wrap`; undone by `unwrap`.

    Called like the backbone, and returns what the backbone returns.

    Attributes:
        backbone: The wrapped backbone, the same object; usable by itself as before.
        heads: The heads.
        config: The config.
        plan: What surgery found.
        calibration: Result of the last `calibrate`, or None.
    """

    def __init__(
        self,
        backbone: nn.Module,
        plan: Plan,
        config: ExitConfig,
        skeletons: dict[tuple[str, int], Any],
    ) -> None:
        super().__init__()
        heads = Heads(plan, config)
        reference = next((p for p in backbone.parameters() if p.is_floating_point()), None)
        if reference is not None:
            heads.to(device=reference.device, dtype=reference.dtype)
        self.backbone = backbone
        self.heads = heads
        self.config = config
        self.plan = plan
        self.calibration: Any = None
        self._signature = signature_of(backbone.forward)
        self._policy: Policy = policy_from_dict(config.policy) if config.policy else NeverExit()
        self._templates: dict[tuple[object, ...], OutputTemplate | None] = {}
        self._trajectory: Trajectory | None = None
        self._trace: Trace | None = None
        self._warned = False
        counted = count_macs(heads, plan)
        points = [
            ExitPoint(
                i,
                at,
                landing,
                heads.output[i - 1],
                heads.uncertainty[i - 1],
                config.output.kind == "carried",
                *counted[i - 1],
            )
            for i, (at, landing) in enumerate(zip(heads.boundaries, heads.landings, strict=True), 1)
        ]
        self._layout = Layout(plan, points, heads.embed, heads.size_of)
        self.train(backbone.training)
        self._gates: GateSet | None = GateSet(backbone, plan, skeletons)

    # what it is

    def __getattr__(self, name: str) -> Any:
        """Looks on the backbone for what the wrapper does not have (`config` is the wrapper's)."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "backbone" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self.backbone, name)

    @property
    def exits(self) -> list[Exit]:
        """The exits in order; `exits[d - 1]` is where a row of depth d leaves."""
        out = []
        for p in self._layout.points:
            back = sum(s.macs for s in self.plan.stages if p.landing and s.index > p.landing)
            cost = p.boundary.share + (back + p.output_macs) / (self.plan.macs or 1.0)
            out.append(Exit(p.index, p.boundary.path, p.boundary.class_name, cost))
        return out

    @property
    def policy(self) -> Policy:
        """Decides who leaves; assign another one at any time."""
        return self._policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        if not isinstance(policy, Policy):
            raise ConfigError(
                f"model.policy: expected a Policy, got {type(policy).__name__}. For example "
                "model.policy = ek.policies.UncertaintyThreshold(0.05)."
            )
        self._policy = policy

    @property
    def trace(self) -> Trace:
        """Accounts of the last call, or of the last trajectory as a whole."""
        if self._trace is None:
            return Trace(len(self._layout.points), self._layout.layers)
        return self._trace

    # running

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
            return self.all_exits(args, kwargs)
        gates = self._require_gates()
        bound = bind(self._signature, args, kwargs)
        call = self._read(bound)
        trajectory, branch = self._trajectory, None
        if trajectory is not None:
            key = (call.noisy.shape, call.noisy.dtype, call.noisy.device)
            branch = trajectory.begin(call.timestep, call.batch, key)
        elif self.config.output.kind == "carried":
            self._warn_outside_trajectory()
        attached = all(p.landing is None for p in self._layout.points)
        form = self._form(bound, call) if attached else ()
        template = self._templates.get(form)
        run = Run(
            self._layout,
            gates,
            self._policy,
            call,
            branch,
            trajectory.step if trajectory else None,
            trajectory.steps if trajectory else None,
            may_unwind=template is not None,
        )
        started = time.perf_counter()
        token = CURRENT.set(run)
        try:
            output = self.backbone(*args, **kwargs)
        except Unwind:
            output = None
        finally:
            CURRENT.reset(token)
        if attached and form not in self._templates:
            leaf = next(x for x in self.plan.outputs if x.path == self.plan.prediction)
            self._templates[form] = OutputTemplate.learn(output, leaf)
        output = run.finish(output, template)
        run.trace.seconds = time.perf_counter() - started
        if trajectory is not None:
            trajectory.book(run.trace)
        self._trace = trajectory.trace if trajectory else run.trace
        return output

    def _require_gates(self) -> GateSet:
        if self._gates is None:
            raise AlreadyWrappedError(
                f"This wrapped {type(self.backbone).__name__} was undone by unwrap(). Use the "
                "backbone itself, or wrap it again with ek.wrap(backbone, ...)."
            )
        return self._gates

    def _warn_outside_trajectory(self) -> None:
        if not self._warned and not isinstance(self._policy, NeverExit):
            self._warned = True
            warnings.warn(
                "A carried exit has nothing to carry outside a trajectory, so every row runs to the "
                "end. Use `with model.trajectory():` around the sampling loop, or ek.generate.",
                stacklevel=4,
            )

    def _form(self, bound: Bound, call: Call) -> tuple[object, ...]:
        """What decides the type and shape of the output, rows left out."""
        plain = [
            (p, v)
            for name, value in bound.values.items()
            for p, v in constants(value, name)
            if isinstance(v, bool | int | float | str | type(None))
        ]
        return (tuple(plain), tuple(call.noisy.shape[1:]), call.noisy.dtype)

    def _read(self, bound: Bound) -> Call:
        tensors = dict(bound.tensors())
        leaf = next(x for x in self.plan.inputs if x.path == self.plan.noisy)
        if self.plan.noisy not in tensors or leaf.axis is None:
            raise ShapeError(
                f"{self.plan.class_name}: the noisy input {self.plan.noisy!r} is missing from this call "
                f"(found {', '.join(tensors) or 'no tensor'}). Call the wrapped model like the example."
            )
        noisy = tensors[self.plan.noisy].movedim(leaf.axis, 0)
        batch = noisy.shape[0]
        if batch == 0:
            raise ShapeError(
                f"{self.plan.class_name}: {self.plan.noisy!r} has shape "
                f"{tuple(tensors[self.plan.noisy].shape)}, an empty batch. Pass at least one row."
            )

        def replay(point: ExitPoint, value: Tensor, rows: Tensor) -> Tensor:
            part = chosen(bound, self.plan, rows, batch)
            return self._replay(part, value, rows.numel(), point)

        return Call(batch, noisy, self._timestep(bound, noisy, batch), replay)

    def _timestep(self, bound: Bound, noisy: Tensor, batch: int) -> Tensor | None:
        if self.plan.timestep is None or bound.values.get(self.plan.timestep) is None:
            return None
        value = torch.as_tensor(bound.values[self.plan.timestep], device=noisy.device).float()
        if value.numel() != 1 and value.shape[0] == batch:
            value = value.reshape(batch, -1)[:, 0]
        else:
            value = value.flatten()[:1].expand(batch)
        return value * self.plan.timestep_scale

    @contextmanager
    def trajectory(self, steps: int | None = None) -> Iterator[Trajectory]:
        """Opens the state that one step leaves for a later one.

        Arguments:
            steps: How many steps are planned, for policies that spread a budget over them.

        Yields:
            The trajectory; `model.trace` covers all of it afterwards.

        Raises:
            TrajectoryError: If one is open already.
        """
        if self._trajectory is not None:
            raise TrajectoryError(
                "A trajectory of this model is open already. Close it before opening the next: state "
                "of two generations must not mix."
            )
        opened = Trajectory(steps)
        self._trajectory = opened
        try:
            yield opened
        finally:
            self._trajectory = None

    # training and analysis

    def record(self, *args: Any, **kwargs: Any) -> Recording:
        """Runs the full backbone once and keeps the hidden states that heads work on.

        Arguments:
            args: The backbone's positional arguments.
            kwargs: The backbone's keyword arguments.

        Returns:
            Output and hidden states, with gradients if they are enabled.
        """
        bound = bind(self._signature, args, kwargs)
        call = self._read(bound)
        points = self._layout.points
        stages = {p.boundary.stage for p in points} | {p.landing for p in points if p.landing}
        recorder = Recorder(
            self._layout, self._require_gates(), call.batch, stages | {self.plan.depth}
        )
        token = CURRENT.set(recorder)
        try:
            output = self.backbone(*args, **kwargs)
        finally:
            CURRENT.reset(token)
        return Recording(
            output,
            self.prediction_of(output),
            {p.index: recorder.hidden[p.boundary.stage] for p in points},
            {p.index: recorder.hidden[p.landing] for p in points if p.landing},
            recorder.hidden[self.plan.depth],
            call.noisy,
            call.timestep,
        )

    def prediction_of(self, output: Any) -> Tensor:
        """The prediction tensor inside a backbone's output, rows first.

        Arguments:
            output: What the backbone returned.

        Returns:
            The prediction, with shape (B, ...).
        """
        leaf = next(x for x in self.plan.outputs if x.path == self.plan.prediction)
        found = dict(leaves(output))
        # return_dict=False and the like change the address but not the order.
        tensor = found.get(leaf.path, next(iter(found.values())))
        return tensor.movedim(leaf.axis or 0, 0)

    def replay(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], hiddens: list[Tensor]
    ) -> list[Tensor]:
        """Puts hidden states behind the last block and runs the backbone's own tail on them.

        Arguments:
            args: The backbone's positional arguments, B rows.
            kwargs: The backbone's keyword arguments.
            hiddens: Hidden states for the end of the network, each with shape (B, ...).

        Returns:
            The prediction for each, with shape (B, ...), from one pass.
        """
        bound = bind(self._signature, args, kwargs)
        batch = self._read(bound).batch
        many = stacked(bound, self.plan, batch, len(hiddens))
        out = self._replay(many, torch.cat(hiddens), batch * len(hiddens), None)
        return list(out.chunk(len(hiddens)))

    def _replay(self, bound: Bound, value: Tensor, batch: int, point: ExitPoint | None) -> Tensor:
        landing = point.landing if point and point.landing else self.plan.depth
        first = point.boundary.stage if point and landing < self.plan.depth else 0
        runner = Replay(self._layout, self._require_gates(), batch, landing, value, first)
        args, kwargs = bound.split()
        token = CURRENT.set(runner)
        try:
            return self.prediction_of(self.backbone(*args, **kwargs))
        finally:
            CURRENT.reset(token)

    def all_exits(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExitOutput:
        """Predictions and uncertainties of every exit on the same input.

        Arguments:
            args: The backbone's positional arguments.
            kwargs: The backbone's keyword arguments.

        Returns:
            Outputs of all exits. The backbone ran once; a frozen one without gradients.

        Raises:
            TrajectoryError: If the exits are carried: they have no output without past steps.
        """
        if self.config.output.kind == "carried":
            raise TrajectoryError(
                "Carried exits complete a row with what its last full steps left, so they have no "
                "output on a single input. Fit them with ek.fit(model, ek.SelfTrajectories(...))."
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.loss.train_backbone):
            record = self.record(*args, **kwargs)
        batch = record.noisy.shape[0]
        t = record.timestep if record.timestep is not None else record.noisy.new_zeros(batch)
        embedding = self.heads.embed(t)
        points = self._layout.points
        landing = [
            p.output(record.hidden[p.index], embedding) for p in points if p.landing is not None
        ]
        replayed = iter(self.replay(args, kwargs, landing) if landing else [])
        exits = [
            next(replayed)
            if p.landing is not None
            else p.output(record.hidden[p.index], embedding, record.noisy)
            for p in points
        ]

        def stop(hidden: Tensor) -> Tensor:
            return hidden.detach() if self.config.loss.detach_hidden else hidden

        size = self.heads.size_of(record.noisy)
        uncertainty = [p.uncertainty(stop(record.hidden[p.index]), embedding, size) for p in points]
        if self.heads.final is not None:
            uncertainty.append(self.heads.final(stop(record.final), embedding, size))
        return ExitOutput(record.output, record.prediction, exits, uncertainty, record.timestep)

    def exit_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the heads."""
        return self.heads.parameters()

    # words

    def print_trainable_parameters(self) -> None:
        """Prints how many parameters train, in PEFT's words."""
        own = sum(p.numel() for p in self.heads.parameters())
        everything = own + sum(p.numel() for p in self.backbone.parameters())
        train = everything if self.config.loss.train_backbone else own
        print(
            f"trainable params: {train:,} || all params: {everything:,} || "
            f"trainable%: {100 * train / everything:.4f}"
        )

    def summary(self) -> str:
        """What is wrapped, where the exits are and what they cost."""
        lines = [
            f"{self.plan.class_name} with {len(self.exits)} exits of {self.plan.depth} stages, preset "
            f"{self.config.preset!r}, policy {self._policy}",
        ]
        for e, p in zip(self.exits, self._layout.points, strict=True):
            goes_on = f", resumes after stage {p.landing}" if p.landing else ", own prediction"
            lines.append(
                f"  exit {e.index}: {e.path} ({e.class_name}), cost {e.cost:.1%}, "
                f"{type(p.output).__name__}{goes_on}"
            )
        wanted = self.config.output.kind
        if wanted in ("tail", "shared") and self.plan.mechanism == "attached":
            lines.append(
                f"  output heads are attached: hidden states change shape, so {wanted!r} heads would "
                "find no tail to go through"
            )
        return "\n".join(lines)

    # keeping and undoing

    def save_pretrained(self, path: str | Path) -> None:
        """Writes heads, config, policy and the backbone's fingerprint; see `from_pretrained`.

        Arguments:
            path: Folder; made if it is not there. A fine-tuned backbone is written too.
        """
        persistence.save(
            path,
            heads=self.heads,
            backbone=self.backbone,
            config=self.config,
            policy=self._policy.to_dict(),
            exits=[e.path for e in self.exits],
        )

    @classmethod
    def from_pretrained(
        cls,
        backbone: nn.Module,
        path: str | Path,
        *,
        example_inputs: Any,
        adapter: Adapter | None = None,
        check_weights: bool = True,
    ) -> ExitModel:
        """Wraps a backbone with saved heads.

        Arguments:
            backbone: The backbone that the heads were fitted on. If it was fine-tuned with them, the
                saved weights are loaded into it.
            path: Folder written by `save_pretrained`.
            example_inputs: As for `wrap`.
            adapter: As for `wrap`.
            check_weights: Refuse a backbone with other weights.

        Returns:
            The wrapped model with its policy.

        Raises:
            CheckpointError: If the folder is damaged or belongs to another backbone; the backbone
                is left as it was.
        """
        config, described = persistence.read_config(path)
        if check_weights:
            persistence.check_backbone(backbone, described, path)
        model = wrap(backbone, config, example_inputs=example_inputs, adapter=adapter)
        try:
            persistence.load_tensors(Path(path) / persistence.HEADS, model.heads, "heads")
            model.policy = policy_from_dict(described["policy"])
            if config.loss.train_backbone:
                file = Path(path) / persistence.BACKBONE
                persistence.load_tensors(file, backbone, "backbone")
        except Exception:
            unwrap(model)
            raise
        return model

    def unload(self) -> nn.Module:
        """Undoes the wrapping; alias of `unwrap` for those who come from PEFT."""
        return unwrap(self)


def wrap(
    backbone: nn.Module,
    config: str | ExitConfig = "relative",
    *,
    example_inputs: Any,
    adapter: Adapter | None = None,
    **overrides: Any,
) -> ExitModel:
    """Gives a backbone exits.

    The blocks are found by running the backbone a few times on the example. Nothing of the backbone
    is rewritten, nothing changes until a policy lets rows leave, and untrained heads never do.

    Arguments:
        backbone: Any denoiser or classifier.
        config: Name of a preset (`paper`, `official`, `relative`, `carried`) or an `ExitConfig`.
        example_inputs: What the backbone is called with: a tuple is positional, a dict is keyword,
            `ek.Inputs(*args, **kwargs)` is both. Any batch size of one or more.
        adapter: Declarations about the architecture; looked up if None.
        overrides: Fields of `ExitConfig` to replace, for example `exits=(1, -1)`.

    Returns:
        The wrapped model, called like the backbone.

    Raises:
        AlreadyWrappedError: If the backbone is wrapped already.
        UnsupportedBackboneError: If it has no blocks to skip; the message lists what was seen.
        TracingError: If it does not run on the example.
        BoundaryError: If an exit is named that is not there.
        ConfigError: If the config is wrong.
    """
    _check_backbone(backbone)
    resolved = resolve_config(config, **overrides)
    plan, seen = make_plan(backbone, example_inputs, adapter)
    skeletons = {(c.path, c.nth): c.skeleton for c in seen.base.calls}
    return ExitModel(backbone, plan, resolved, skeletons)


def inspect(backbone: nn.Module, *, example_inputs: Any, adapter: Adapter | None = None) -> Plan:
    """Tells where a backbone could be cut, without touching it.

    Arguments:
        backbone: Any denoiser or classifier.
        example_inputs: As for `wrap`.
        adapter: As for `wrap`.

    Returns:
        The plan; printed, a table of boundary, path, class, shape, share of MACs, and whether it is
        usable or why not.
    """
    _check_backbone(backbone)
    return make_plan(backbone, example_inputs, adapter)[0]


def unwrap(model: ExitModel) -> nn.Module:
    """Undoes `wrap`.

    Arguments:
        model: The wrapped model. It cannot be used afterwards.

    Returns:
        The backbone, the same object, as it was.

    Raises:
        AlreadyWrappedError: If it was undone before.
    """
    if not isinstance(model, ExitModel):
        raise ConfigError(f"unwrap: expected what ek.wrap returned, got {type(model).__name__}.")
    model._require_gates().remove()
    model._gates = None
    return model.backbone


def _check_backbone(backbone: object) -> None:
    if isinstance(backbone, ExitModel):
        raise AlreadyWrappedError(
            f"This {backbone.plan.class_name} is wrapped already. Assign model.policy to change its "
            "policy, or undo it with ek.unwrap(model) and wrap again."
        )
    if not isinstance(backbone, nn.Module):
        raise ConfigError(
            f"Expected a torch.nn.Module, got {type(backbone).__name__}. Of a pipeline, pass its "
            "denoiser: pipe.transformer or pipe.unet."
        )
    for path, module in backbone.named_modules():
        if isinstance(module.__dict__.get("forward"), Gate):
            raise AlreadyWrappedError(
                f"{type(backbone).__name__}: block {path!r} ({type(module).__name__}) is wrapped "
                "already. Use that wrapped model, or undo it first with ek.unwrap(model)."
            )
