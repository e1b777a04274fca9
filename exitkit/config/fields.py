"""Frozen settings of wrapped models: heads, losses, guidance, the policy they start with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from exitkit.errors import ConfigError


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    if not TYPE_CHECKING:  # which knows the fields

        def __init__(self, **data: Any) -> None:
            try:
                super().__init__(**data)
            except ValidationError as error:
                raise _refusal(type(self).__name__, error) from error

        # As that of BaseModel: parts of a whole are validated with it, which tells all at once.
        __init__.__pydantic_base_init__ = True


def _refusal(name: str, error: ValidationError) -> ConfigError:
    problems = "; ".join(
        f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg'].removeprefix('Value error, ')}"
        for e in error.errors()
    )
    return ConfigError(f"{name}: {problems}. See exitkit.config.{name}.")


class UncertaintyConfig(_Frozen):
    """Uncertainty heads (the paper's UEM, eq. 7).

    Attributes:
        kind: `map` predicts one value per output element, `scalar` one per sample.
        shared: One head for all exits instead of one each (the paper's "Sharing" ablation); or
            `by_shape`, one for all exits whose hidden states have the same shape.
        timestep: Whether the head sees the timestep embedding.
        final: Whether the end of the network has a head as well (eq. 8 sums over all blocks).
        embedding_dim: Width of the sinusoidal timestep embedding.
    """

    kind: Literal["map", "scalar"] = "map"
    shared: bool | Literal["by_shape"] = False
    timestep: bool = True
    final: bool = False
    embedding_dim: int = Field(default=64, ge=2, multiple_of=2)


class OutputConfig(_Frozen):
    """Output heads: what turns the hidden state of an exit into an output.

    Attributes:
        kind: `tail` is the backbone's own tail after a per-exit translator, `output` an own output
            layer per exit (eq. 7's g_i), `shared` the backbone's tail as it is, `carried` the rest
            of the row's last full steps, corrected, `completion` no head at any boundary but one for
            the whole backbone, which completes a step at depth 0. Shape-changing backbones have no tail to
            reach: there `tail` and `shared` build `output` heads, and `model.summary()` says so.
        width: Rank of the carried correction's linear maps, or hidden width of its perceptron; a
            default from the channels if None.
        order: How many past full steps the carried head looks at (1 or 2).
        knots: Most linear maps along time that correct the carried rest, solved for in closed form;
            as many as sampler steps is best. 0 trains a perceptron instead. For completion, most
            scalars along time.
        resume: Where a carried exit goes on: at the `tail`, or at the block that `mirror`s it.
            `auto` takes the mirror where hidden states change shape, else the tail.
        quantity: What completion takes for a line: `noise`, the clean sample `x0`, or `velocity`.
        along: In what it is a line: the `time`, or the `log_snr`.
        aim: Whose states completion is solved for: a `finer` run of the sampler, or its `full` run.
    """

    kind: Literal["tail", "output", "shared", "carried", "completion"] = "tail"
    width: int | None = Field(default=None, ge=1)
    order: Literal[1, 2] = 2
    knots: int = Field(default=50, ge=0)
    resume: Literal["auto", "tail", "mirror"] = "auto"
    quantity: Literal["noise", "x0", "velocity"] = "noise"
    along: Literal["time", "log_snr"] = "time"
    aim: Literal["finer", "full"] = "finer"


class LossConfig(_Frozen):
    r"""The training loss, :math:`L_{simple} + \lambda L_u + \beta L_{UAL}` (eq. 12) and its readings.

    Attributes:
        target: What exits are fitted to: the `task`'s target (noise, v, x0, class), or the output
            of the full `model` on the same input.
        uncertainty_target: `absolute` is eq. 8, tanh|g_i - target|; `relative` is the gap to the
            full model's output in units of that output's own size; `disagreement` is CALM's meta
            classifier: 1 where leaving changes the answer (the class, or for regressions the output
            by more than a tenth of its size), else 0.
        weighting: Weight of an exit's error. `one_minus_u` is eq. 11; `certainty_share` is the
            released code's batch mean of 1-u, normalised over exits; `depth` grows with the exit,
            i / (1 + .. + K) (CALM, PABEE); `uniform` is 1.
        alternating: BERxiT's fine-tuning: steps 0, 2, 4 .. train on the full model's loss alone,
            the steps between on the exits' and their uncertainty's.
        detach_weight: Stop the gradient through the weight. Without it u is biased upwards.
        detach_pseudo_target: Stop the gradient through the uncertainty target.
        detach_hidden: Stop the uncertainty loss at the hidden state.
        uncertainty_weight: Lambda of eq. 12.
        layer_weight: Beta of eq. 12.
        final_weight: Weight of the full model's own loss; without effect on a frozen backbone.
        unweighted: Weight of an additional, unweighted sum of exit errors (DuoDiff's fourth term).
        weight_floor: Smallest weight of an exit's error, in [0, 1].
        include_last: Whether the layer loss runs over the last block too (the released code) or
            stops before it (eq. 11).
        train_backbone: Fine-tune the backbone too.
    """

    target: Literal["task", "model"] = "task"
    uncertainty_target: Literal["absolute", "relative", "disagreement"] = "absolute"
    weighting: Literal["one_minus_u", "certainty_share", "depth", "uniform"] = "one_minus_u"
    alternating: bool = False
    detach_weight: bool = True
    detach_pseudo_target: bool = True
    detach_hidden: bool = False
    uncertainty_weight: float = Field(default=1.0, ge=0)
    layer_weight: float = Field(default=1.0, ge=0)
    final_weight: float = Field(default=1.0, ge=0)
    unweighted: float = Field(default=0.0, ge=0)
    weight_floor: float = Field(default=0.0, ge=0, le=1)
    include_last: bool = False
    train_backbone: bool = False


class ExitConfig(_Frozen):
    """All settings of a wrapped model.

    Attributes:
        preset: Name of the preset that the settings come from; `custom` when hand-made.
        exits: Which boundaries carry heads: 1-based indices (negative from the end), dotted paths
            or wildcards such as `"blocks.*"`. None: all that cost less than the full network, of carried
            exits those that have somewhere to resume; `"first"`: the first of these alone.
        uncertainty: Uncertainty heads.
        output: Output heads.
        loss: Training loss.
        policy: A serialised policy (`Policy.to_dict`), or None for `NeverExit`.
        guidance: Whether the copies of a sample under classifier-free guidance (stacked along the
            batch, or in several calls of one step of a trajectory) leave at depths of their own, or
            `tied`: together, when all of them would.
    """

    preset: str = "custom"
    exits: tuple[int | str, ...] | Literal["first"] | None = None
    uncertainty: UncertaintyConfig = UncertaintyConfig()
    output: OutputConfig = OutputConfig()
    loss: LossConfig = LossConfig()
    policy: dict[str, Any] | None = None
    guidance: Literal["independent", "tied"] = "independent"

    @field_validator("exits", mode="before")
    @classmethod
    def _several(cls, exits: Any) -> Any:
        if exits is None or exits == "first" or isinstance(exits, tuple | list):
            return exits
        one = isinstance(exits, str | int) and not isinstance(exits, bool)
        example = f"exits=({exits!r},)" if one else "exits=(1, 'blocks.3')"
        raise ValueError(
            f"expected indices, paths or wildcards in a tuple, 'first' or None, got {exits!r}; pass "
            f"{example}"
        )

    @model_validator(mode="after")
    def _consistent(self) -> ExitConfig:
        if self.output.kind == "carried" and self.loss.train_backbone:
            raise ValueError(
                "output.kind='carried' corrects what a frozen backbone left behind; "
                "set loss.train_backbone=False"
            )
        if self.output.kind == "completion":
            object.__setattr__(self, "exits", self.exits or ())
            if self.exits or self.loss.train_backbone or self.uncertainty.final:
                raise ValueError(
                    "output.kind='completion' forecasts a frozen backbone as a whole: leave exits out, "
                    "and set loss.train_backbone and uncertainty.final to False"
                )
            return self
        if self.exits is not None and not self.exits:
            raise ValueError("exits=() leaves no exit; name at least one, or use None for all")
        return self


def parse_config(data: dict[str, Any]) -> ExitConfig:
    """Validates a plain dictionary (as read from JSON) into a config.

    Arguments:
        data: Fields of `ExitConfig`.

    Returns:
        The validated config.

    Raises:
        ConfigError: If a field is unknown or out of range; the message lists all of them.
    """
    try:
        return ExitConfig.model_validate(data)
    except ValidationError as error:
        raise _refusal("ExitConfig", error) from error
