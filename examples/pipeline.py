"""A diffusers pipeline: its own call leaves early, and one call gives it back. Offline, random weights."""

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

import exitkit as ek
from exitkit.policies import FixedExit, Interval, NeverExit

torch.manual_seed(0)
pipe = DiTPipeline(
    transformer=DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        num_layers=8,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
    ).eval(),
    vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4).eval(),
    scheduler=DDIMScheduler(),
)
pipe.set_progress_bar_config(disable=True)


def draw() -> torch.Tensor:
    """Two pictures, classes 3 and 7, always from the same noise."""
    seed = torch.Generator().manual_seed(1)
    pictures = pipe([3, 7], generator=seed, num_inference_steps=12, output_type="np").images
    return torch.as_tensor(pictures)


bare = draw()

# %% The keywords of the pipeline's own call are the example. A real one differs in this line:
# pipe = DiTPipeline.from_pretrained("facebook/DiT-XL-2-256")
model = ek.wrap(pipe, "carried", example_inputs={"class_labels": [3, 7]})
print(model.summary())

# %% Nothing changes until a policy says so.
model.policy = NeverExit()
assert torch.equal(draw(), bare)

# %% Exits that were never fitted are not used. Plain reuse needs no fit, so say that it is wanted.
model.heads.mark_fitted()

# %% Every third step in full; the others leave at the first exit and carry what the last one left.
model.policy = Interval(3)
early = draw()
print(model.trace)
assert model.trace.depth.shape[0] == 12 and model.trace.cost < 0.7
assert not torch.equal(early, bare)

# %% More full steps are closer to the bare pipeline.
model.policy = Interval(2)
closer = draw()
assert (closer - bare).square().mean() < (early - bare).square().mean()

# %% A policy that always leaves still starts each generation with a full step.
model.policy = FixedExit(1)
draw()
assert model.trace.depth[0].tolist() == [len(model.exits) + 1] * model.trace.depth.shape[1]

# %% And back: the pipeline, bit for bit.
assert ek.unwrap(pipe) is pipe
assert torch.equal(draw(), bare)
print("the pipeline is as it was")
