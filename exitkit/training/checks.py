"""What `fit` refuses before anything runs."""

from __future__ import annotations

from exitkit.errors import ConfigError, expect
from exitkit.model import ExitModel
from exitkit.training.tasks import Task


def check_settings(given: object, kind: type) -> None:
    """Refuses settings of another type than theirs.

    Arguments:
        given: What `fit` was given, or None.
        kind: The type.

    Raises:
        ConfigError: If it is something else.
    """
    if given is not None:
        where, wanted = f"fit: {kind.__name__.lower()}=", f"ek.{kind.__name__}(...) or None"
        expect(where, given, kind, wanted, "Its docstring tells what it takes.")


def check_instance(task: object) -> None:
    """Refuses the class of a task where one of its instances belongs.

    Arguments:
        task: What `fit` was given, or None.

    Raises:
        ConfigError: If it is a class.
    """
    if isinstance(task, type):
        raise ConfigError(
            f"fit: task is the class {task.__name__}, expected an instance, such as "
            f"ek.tasks.{task.__name__}(...). Its docstring tells what it takes."
        )


def check_parameters(model: ExitModel) -> None:
    """Refuses parameters that can have no gradient.

    Arguments:
        model: The wrapped model.

    Raises:
        ConfigError: If the network was made in inference mode.
    """
    inference = [name for name, p in model.named_parameters() if p.is_inference()]
    if inference:
        raise ConfigError(
            f"fit: {len(inference)} parameters of this {model.plan.class_name}, such as {inference[0]!r}, "
            "are inference tensors, which autograd cannot use: the network was made inside "
            "`torch.inference_mode()`. Make or load it outside of that, or in torch.no_grad()."
        )


def check_task(model: ExitModel, task: Task | None) -> None:
    """Refuses to train a network to predict something else than an earlier fit trained it to.

    A frozen network predicts what it predicts: of it the later fit is believed.

    Arguments:
        model: The wrapped model.
        task: The task of the fit, if there is one.

    Raises:
        ConfigError: If the two contradict each other.
    """
    if task is None or not model.exit_config.loss.train_backbone:
        return
    if model.predicts not in (None, task.prediction_type):
        raise ConfigError(
            f"fit: {type(task).__name__} trains this {model.plan.class_name} to predict "
            f"{task.prediction_type!r}, and an earlier fit trained it to predict {model.predicts!r}. Pass "
            "the task of that fit, or set model.predicts = None to train it to something else."
        )
