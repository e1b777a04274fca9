"""A text-guided diffusers pipeline at half of its cost, from wrap to pictures and saved exits. Offline.

python -m examples.pipeline [FOLDER]       # a minute or two; report, pictures and exits go there
"""

import sys
from pathlib import Path
from tempfile import mkdtemp

import torch
from diffusers import DDIMScheduler

import exitkit as ek
from examples.reproduction.models.captions import WORDS
from examples.reproduction.models.pixart_pipeline import CALL, pixart_pipeline, request
from exitkit.policies import NeverExit

# %% A small PixArt that draws digits from a prompt, which MiniLM reads. A real one differs in this line:
# pipe = PixArtSigmaPipeline.from_pretrained("PixArt-alpha/PixArt-Sigma-XL-2-512-MS")
pipe = pixart_pipeline()
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
if pipe.text_encoder is None:
    print("stored embeddings of ten prompts; pip install exitkit-torch[text] reads any prompt")
calls = [request(f"a handwritten {word}") for word in WORDS]  # or [{"prompt": "a cat"}, ...]


def draw(pipe: object) -> torch.Tensor:
    """A picture by the pipeline itself, always from the same noise."""
    asked = request("please draw a seven") if pipe.text_encoder else calls[7]
    noise = torch.Generator().manual_seed(1)
    return pipe(**asked, **CALL, generator=noise, output_type="pt").images


bare = draw(pipe)

# %% From wrap to report: the pipeline's own call is the sampling loop of every line.
model = ek.wrap(pipe, "carried", example_inputs={**calls[7], **CALL})
sampler = ek.PipelineSampler(pipe, calls, rows=10, **CALL)
ek.fit(model, sampler, steps=40, progress=False)
found = ek.calibrate(model, sampler, budget=0.5, policy="schedule", seeds=10, progress=False)
model.policy = found.policy
early = draw(pipe)
cost = model.trace.cost
comparison = ek.compare([ek.Entry("carried", model)], sampler, seeds=20, progress=False)
folder = Path(sys.argv[1] if sys.argv[1:] else mkdtemp())
# pictures/samples.png: the same seeds side by side
ek.write_report(comparison, folder / "report.html", pictures=folder / "pictures")
model.save_pretrained(folder / "exits")
print(found, comparison, f"report, pictures and exits: {folder}", sep="\n")

# %% What was asked for, and closer to the full pipeline than fewer steps of its cost, seed by seed.
exits = next(row for row in comparison.rows if row.name == "carried")
fewer = next(row for row in comparison.rows if row.kind == "fewer steps")
assert max(found.cost, cost, exits.cost) <= 0.5 * 1.02
assert exits.against_steps.high < 1
print(f"{exits.cost:.3f} of the cost, {exits.distance} away; {fewer.name}: {fewer.distance}")

# %% Saved exits give another pipeline the same pictures, bit for bit.
other = pixart_pipeline()
other.scheduler = DDIMScheduler.from_config(other.scheduler.config)
ek.load(other, folder / "exits")
assert torch.equal(draw(other), early) and not torch.equal(early, bare)

# %% Without exits, and unwrapped, the pipeline draws what it drew.
model.policy = NeverExit()
assert torch.equal(draw(pipe), bare)
assert ek.unwrap(pipe) is pipe and torch.equal(draw(pipe), bare)
print("the pipeline is as it was")
