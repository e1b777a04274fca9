"""A timm classifier with exits: easy digits leave early, and accuracy holds. About half a minute."""

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import exitkit as ek
from exitkit.policies import ConfidenceThreshold

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1  # (1797, 1, 8, 8)
labels = torch.tensor(digits.target)
order = torch.randperm(len(labels))
train, tune, test = order[:1200], order[1200:1400], order[1400:]


def batches(rows: Tensor, size: int = 64) -> list[tuple[Tensor, Tensor]]:
    return [(images[part], labels[part]) for part in rows.split(size)]


def accuracy(network: nn.Module) -> float:
    with torch.no_grad():
        return float((network(images[test]).argmax(1) == labels[test]).float().mean())


# %% Any timm network; this one is trained here, yours comes from timm.create_model(..., pretrained=True).
network = timm.create_model(
    "vit_tiny_patch16_224",
    img_size=8,
    patch_size=2,
    in_chans=1,
    num_classes=10,
    embed_dim=48,
    depth=6,
    num_heads=3,
)
optimizer = torch.optim.AdamW(network.parameters())
rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, 19 * 20)
for _ in range(20):
    for x, y in batches(train[torch.randperm(len(train))]):
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
        rate.step()
full = accuracy(network.eval())

# %% Exits are fitted on labelled batches; the network itself stays as it is.
model = ek.wrap(network, "relative", example_inputs=(images[:2],))
ek.fit(model, batches(train), ek.tasks.Classification(), steps=200, progress=False)

# %% The cheapest confidence threshold that changes at most 3 % of the predictions on other digits.
found = ek.calibrate(
    model, batches(tune), max_error=0.03, policy=ConfidenceThreshold(0.9), progress=False
)
model.policy = found.policy
early = accuracy(model)
print(f"accuracy {full:.3f} in full, {early:.3f} at {model.trace.cost:.2f} of the MACs")
print(model.trace)
assert full > 0.9 and early > full - 0.05
assert model.trace.cost < 0.9
assert len(model.trace.depth.unique()) > 1, "every digit left at the same exit"

assert ek.unwrap(model) is network and accuracy(network) == full
