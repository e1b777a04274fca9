"""The public contract: what every wrapped backbone and every policy promises, as runnable checks.

For a backbone or an adapter of your own:

    from exitkit.testing import check_backbone

    def test_my_backbone_can_leave_early():
        check_backbone(my_model.eval(), example_inputs=(x, t))

The checks trust nothing that the executor says about itself: rows are compared with the same row
run alone, the work done is counted by hooks inside the blocks, and comparisons have a control that
shows they could have failed.
"""

from __future__ import annotations

from exitkit.testing.adapter import check_adapter
from exitkit.testing.backbone import check_backbone
from exitkit.testing.contract import ContractError
from exitkit.testing.policy import check_policy
from exitkit.testing.signals import SignalTable

__all__ = ["SignalTable", "ContractError", "check_adapter", "check_backbone", "check_policy"]
