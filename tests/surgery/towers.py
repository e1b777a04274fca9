"""A third party's package: a backbone and its adapter, as source to install or to run."""

from __future__ import annotations

TOWERS = '''
import torch
from torch import nn
from exitkit.surgery.adapter import Adapter

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
    def forward(self, x, emb):
        return x + torch.tanh(self.linear(x) + emb)

class Towers(nn.Module):
    """Two lists of blocks; exits make sense in the second only. Its time has an odd name."""
    def __init__(self):
        super().__init__()
        self.first = nn.ModuleList(Block() for _ in range(3))
        self.second = nn.ModuleList(Block() for _ in range(3))
        self.tail = nn.Linear(8, 8)
    def forward(self, x, dirt):
        emb = torch.sin(dirt[:, None] * torch.linspace(0.1, 1, 8))
        for block in [*self.first, *self.second]:
            x = block(x, emb)
        return self.tail(x)

ADAPTER = Adapter(
    name="towers", matches="towers_package.Towers", blocks=("second.*",), timestep="dirt"
)

def register(registry):
    registry.register(ADAPTER)
'''
