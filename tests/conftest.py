"""What all tests share: fixed seeds, one thread, and a watch on global state."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from torch.nn.modules import module as torch_module

from tests.interpreter import Interpreter

GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)


def pytest_configure(config: pytest.Config) -> None:
    # The networks are tiny: a second thread costs more than it brings.
    torch.set_num_threads(1)
    # What the libraries made at import stays; looking at it again and again is 2 % of the suite.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


LARGE = {"flux", "sd3", "unet_conditional"}
"""Networks that take a second to wrap; each mechanism of theirs has a smaller member among the cases."""

WITH_LARGE = ("contract/test_backbones", "pipelines/", "surgery/test_plan")
"""Where they run always; everywhere else with the slow tests."""


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        given = getattr(item, "callspec", None)
        if given is None or any(part in item.nodeid for part in WITH_LARGE):
            continue
        names = [getattr(value, "id", value) for value in given.params.values()]
        if any(isinstance(name, str) and name in LARGE for name in names):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interpreter]:
    """An interpreter for programs in fresh processes that has imported torch and nothing else."""
    with Interpreter(tmp_path_factory.mktemp("programs"), "torch") as interpreter:
        yield interpreter


@pytest.fixture(autouse=True)
def _seeded_and_clean() -> Iterator[None]:
    """Seeds every test and fails one that leaves global state behind."""
    torch.manual_seed(0)
    call = torch.nn.Module.__call__
    threads = torch.get_num_threads()
    yield
    assert torch.is_grad_enabled(), "the test left gradients switched off"
    assert torch.get_default_dtype() == torch.float32, "the test left another default dtype"
    assert torch.get_num_threads() == threads, "the test left another number of threads"
    assert torch.nn.Module.__call__ is call, "the test left torch.nn.Module patched"
    for name in GLOBAL_HOOKS:
        assert not getattr(torch_module, name), f"the test left {name} behind"
