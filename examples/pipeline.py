"""A diffusers pipeline at .6 of its cost, from wrap to a report and saved exits. Offline; a minute or two."""

from pathlib import Path
from tempfile import mkdtemp

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline

import exitkit as ek
from examples.reproduction.models.models import load_dit
from exitkit.policies import NeverExit

# %% A small DiT that draws digits by class. It works on pixels, so its latents are the pictures and the
# autoencoder behind it means nothing. A real one differs in this line:
# pipe = DiTPipeline.from_pretrained("facebook/DiT-XL-2-256")
torch.manual_seed(0)
pipe = DiTPipeline(
    transformer=load_dit(),
    vae=AutoencoderKL(block_out_channels=(4,), norm_num_groups=1, latent_channels=1).eval(),
    scheduler=DDIMScheduler(beta_schedule="linear", clip_sample=False),
)
pipe.set_progress_bar_config(disable=True)
calls = [{"class_labels": [digit]} for digit in range(10)]  # or [{"prompt": "a cat"}, ...]
call = {"num_inference_steps": 20, "guidance_scale": 1.0}


def draw() -> torch.Tensor:
    """Two pictures by the pipeline itself, always from the same noise."""
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    return torch.as_tensor(pipe([3, 7], generator=seeds, output_type="np", **call).images)


bare = draw()

# %% From wrap to report: the pipeline's own call is the sampling loop of every line.
model = ek.wrap(pipe, "carried", example_inputs={**calls[7], **call})
sampler = ek.PipelineSampler(pipe, calls, rows=16, **call)
ek.fit(model, sampler, steps=40, progress=False)
found = ek.calibrate(model, sampler, budget=0.6, policy="schedule", seeds=16, progress=False)
model.policy = found.policy
sample = ek.generate(model, sampler, seeds=10)
comparison = ek.compare([ek.Entry("carried", model)], sampler, seeds=32, progress=False)
page = ek.write_report(comparison, Path(mkdtemp()) / "report.html")
model.save_pretrained(page.parent / "exits")
print(found, comparison, f"report: {page}", sep="\n")

# %% What was asked for, and closer to the full pipeline than fewer steps of its cost.
rows = {row.name: row for row in comparison.rows}
fewer = next(row for row in comparison.rows if row.kind == "fewer steps")
assert max(found.cost, sample.trace.cost, rows["carried"].cost) <= 0.6 * 1.02
assert rows["carried"].distance.mean < fewer.distance.mean
print(f"{rows['carried'].distance} from the full pipeline; {fewer.name}: {fewer.distance}")

# %% The pipeline itself leaves early, too; without exits it draws what it drew, bit for bit.
early = draw()
assert model.trace.cost <= 0.6 * 1.02 and not torch.equal(early, bare)
model.policy = NeverExit()
assert torch.equal(draw(), bare)

# %% And back.
assert ek.unwrap(pipe) is pipe
assert torch.equal(draw(), bare)
print("the pipeline is as it was")
