"""The real scale on tiny folders: two processes, one killed, nothing lost and nothing doubled."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from examples.reproduction.full import loading as configs
from examples.reproduction.full.encode import encode
from examples.reproduction.full.evaluate import evaluate, reference, table
from examples.reproduction.full.evaluate import main as evaluate_main
from examples.reproduction.full.fid import Frechet
from examples.reproduction.full.latents import Encoded, LatentExamples
from examples.reproduction.full.models import build_backbone
from examples.reproduction.full.noise import UViTNoise, betas, discrete_scheduler, vp_log_alpha
from examples.reproduction.full.processes import start
from examples.reproduction.full.sample import sample
from examples.reproduction.full.shards import ShardError, Shards, claim
from examples.reproduction.full.sources import Examples, Folder, open_images, read_captions
from examples.reproduction.full.train import train
from examples.reproduction.full.weights import load_weights
from examples.reproduction.models import uvit
from exitkit.errors import CheckpointError, ConfigError, MissingExtraError

ROOT = Path(__file__).parents[2]
COUNT, SIZE = 24, 4

TINY = """
name = "tiny"
schedule = "vp-sde"

[source]
kind = "folder"
root = "{folder}/images"
resolution = 8
flip = true

[backbone.shape]
img_size = 8
patch_size = 4
in_chans = 3
embed_dim = 16
depth = 2
num_heads = 2

[exits]
preset = "official"
thresholds = {{ paper = 0.6, official = 0.6, relative = 0.9, carried = 0.5 }}

[training]
steps = 6
batch = 8
lr = 1e-3
warmup = 2
ema = 0.9
precision = "no"
checkpoint_every = 2
log_every = 1
workers = 0

[heads]
steps = 2
batch = 8
lr = 1e-3
precision = "no"
log_every = 1
workers = 0
rollout_steps = 4
rollouts = 8

[sampling]
sampler = "euler-maruyama"
steps = 4
count = 24
shard = 4
precision = "no"
"""


@pytest.fixture(autouse=True)
def _accelerate_forgets():
    """accelerate keeps the first accelerator's settings for the whole process."""
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def tiny(tmp_path):
    """Forty images in two folders, with captions, and an experiment about them."""
    generator = torch.Generator().manual_seed(0)
    lines = []
    for number in range(40):
        name = f"{'cat' if number % 2 else 'ant'}/{number:02d}.png"
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        array = torch.randint(0, 256, (10, 12, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(array.numpy()).save(path)
        text = [f"image {number}", "again"] if number % 3 else f"image {number}"
        lines.append(json.dumps({"file_name": name, "text": text}))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    (tmp_path / "tiny.toml").write_text(TINY.format(folder=tmp_path))
    return tmp_path


def load(folder, *changes):
    return configs.load(folder / "tiny.toml", changes)


CLASSES = (
    "source.classes=true",
    "backbone.shape.num_classes=3",
    "guidance.scale=1.4",
    "guidance.drop=0.5",
)


# What the shipped files say


@pytest.mark.parametrize(
    ("name", "shape", "threshold", "batch"),
    [
        ("cifar10", uvit.uvit_small_cifar10(), 0.08, 512),
        ("celeba64", uvit.uvit_small_celeba64(), 0.05, 1024),
        ("imagenet256", uvit.uvit_large_imagenet256(), 0.08, 1024),
        ("coco256", uvit.uvit_small_coco256(), 0.13, 256),
    ],
)
def test_shipped_files(name, shape, threshold, batch):
    experiment = configs.load(name)
    assert asdict(experiment.backbone.shape) == asdict(shape)
    assert experiment.exits.threshold == threshold and experiment.sampling.count == 50_000
    assert experiment.training.batch == batch and experiment.training.share(8) == batch // 8
    assert experiment.recipe is experiment.training
    assert configs.load(name, ["exits.preset=carried"]).recipe.clip == 1.0


def test_settings_are_checked(tiny):
    assert load(tiny, "training.steps=9", "backbone.weights=a b.pth").training.steps == 9
    cases = [
        ("training.stesp=1", "training.stesp: Extra"),
        ("guidance.scale=1.0", "guidance"),
        ("schedule=stable-diffusion", "euler-maruyama integrates"),
        ("source.resolution=16", "img_size differ"),
        ("exits.preset=own", "exits.preset"),
        ("training", "section.field=value"),
    ]
    for change, match in cases:
        with pytest.raises(ConfigError, match=match):
            load(tiny, change)
    with pytest.raises(ConfigError, match="Shipped: celeba64, cifar10"):
        configs.load("mnist")
    with pytest.raises(ConfigError, match="batch of 8 cannot be split among 3"):
        load(tiny).training.share(3)


# Noise and clocks


def test_index_is_what_the_network_was_fed():
    """The level of index n is that of time n / 999 (VP-SDE), or level n of 1000 counted from 1."""
    levels = discrete_scheduler("vp-sde").alphas_cumprod.double()
    index = torch.tensor([1, 20, 500, 999])
    torch.testing.assert_close(
        levels[index], vp_log_alpha(index.double() / 999).exp(), rtol=1e-3, atol=1e-7
    )
    own = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    levels = discrete_scheduler("stable-diffusion").alphas_cumprod.double()
    torch.testing.assert_close(levels[1:], (1 - own).cumprod(0), rtol=1e-4, atol=1e-5)
    assert len(betas("stable-diffusion")) == 1001


@pytest.mark.parametrize("schedule", ["vp-sde", "stable-diffusion"])
def test_examples_carry_the_noise_of_their_time(schedule):
    task = UViTNoise(schedule)
    x0 = torch.full((64, 3, 8, 8), 2.0)
    example = task.draw({"x0": x0, "y": torch.arange(64)}, torch.Generator().manual_seed(0))
    x_t, fed = example.args
    assert example.kwargs.keys() == {"y"} and float(fed.min()) >= 0 and float(fed.max()) <= 1000
    level = _level(schedule, fed)
    signal = (x_t - example.target * (1 - level).sqrt()) / level.sqrt()
    kept = level.flatten() > 1e-2
    torch.testing.assert_close(signal[kept], x0[kept], rtol=0, atol=1e-3)


def _level(schedule, fed):
    if schedule == "vp-sde":
        level = vp_log_alpha(fed / 999).exp()
    else:
        level = torch.as_tensor(discrete_scheduler(schedule).alphas_cumprod)[fed]
    return level.reshape(-1, 1, 1, 1)


# Images


def test_image_folder(tiny):
    experiment = load(tiny, *CLASSES)
    images = open_images(experiment.source)
    assert len(images) == 40 and [images[0].label, images[39].label] == [0, 1]
    batch = [Examples(experiment)[i] for i in range(40)]
    assert batch[0]["x0"].shape == (3, 8, 8) and -1 <= float(batch[0]["x0"].min())
    assert {example["y"] for example in batch} == {0, 1, 2}  # 2: no class
    with pytest.raises(ConfigError, match=r"source\.classes"):
        Examples(load(tiny, *CLASSES, "source.classes=false", "guidance.drop=0.0"))[0]
    with pytest.raises(ConfigError, match="no images in"):
        Folder(load(tiny, f"source.root={tiny / 'nothing'}").source)


def test_captions_of_coco(tiny):
    notes = {
        "images": [{"id": 7, "file_name": "ant/00.png"}],
        "annotations": [{"image_id": 7, "caption": "one "}, {"image_id": 7, "caption": "two"}],
    }
    (tiny / "notes.json").write_text(json.dumps(notes))
    assert read_captions(tiny / "notes.json") == {"ant/00.png": ("one", "two")}
    images = open_images(load(tiny, f"source.captions={tiny / 'notes.json'}").source)
    assert len(images) == 1 and images[0].captions == ("one", "two")


def test_hugging_face(tiny, monkeypatch):
    settings = load(tiny, "source.kind=huggingface", "source.label_column=label").source
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "datasets", None)
        with pytest.raises(MissingExtraError, match=r"exitkit-torch\[reproduce\]"):
            open_images(settings)
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict(
        {"image": [str(p) for p in sorted((tiny / "images").rglob("*.png"))], "label": [0, 1] * 20}
    ).cast_column("image", datasets.Image())
    made.save_to_disk(str(tiny / "saved"))
    settings = settings.model_copy(update={"root": tiny / "saved"})
    assert len(open_images(settings)) == 40 and open_images(settings)[3].label == 1
    with pytest.raises(ConfigError, match="no column text; it has image, label"):
        open_images(settings.model_copy(update={"caption_column": "text"}))


# Published weights


@pytest.mark.parametrize("form", ["plain", "wrapped", "state"])
def test_published_weights(tiny, form):
    shape = load(tiny).backbone.shape
    state = uvit.UViT(shape).state_dict()
    wrapped = {f"module.nnet.{name}": tensor for name, tensor in state.items()}
    torch.save({"plain": state, "wrapped": wrapped, "state": {"ema": state}}[form], tiny / "w.pth")
    model = build_backbone(load(tiny, f"backbone.weights={tiny / 'w.pth'}"))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())


def test_weights_that_do_not_fit(tiny):
    model = uvit.UViT(load(tiny).backbone.shape)
    state = {name: t for name, t in model.state_dict().items() if not name.startswith("norm.")}
    torch.save({**state, "uem.weight": torch.ones(1)}, tiny / "other.pth")
    with pytest.raises(
        CheckpointError, match=r"Missing: norm\.bias, norm\.weight\. Unexpected: uem\.weight\."
    ):
        load_weights(model, tiny / "other.pth")
    torch.save({"code": Path("x")}, tiny / "code.pth")
    with pytest.raises(CheckpointError, match="unpickling runs code"):
        load_weights(model, tiny / "code.pth")
    with pytest.raises(CheckpointError, match="is not there"):
        load_weights(model, tiny / "none.pth")


def test_text_conditional_uvit(tiny):
    """Tokens are ordered time, text, patches, as in the published text-to-image checkpoint."""
    shape = replace(load(tiny).backbone.shape, clip_dim=6, num_clip_token=5)
    model = uvit.UViT(shape).eval()
    plain = uvit.UViT(load(tiny).backbone.shape).state_dict()
    added = model.state_dict().keys() - plain.keys()
    assert added == {"context_embed.weight", "context_embed.bias"}
    assert model.pos_embed.shape == (1, 1 + 5 + 4, 16)
    torch.nn.init.zeros_(model.pos_embed)
    seen = []
    model.in_blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x, t, text = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 500.0]), torch.randn(2, 5, 6)
    assert model(x, t, context=text).shape == x.shape
    torch.testing.assert_close(seen[0][:, 0], uvit.timestep_embedding(t, 16))
    torch.testing.assert_close(seen[0][:, 1:6], model.context_embed(text))
    torch.testing.assert_close(seen[0][:, 6:], model.patch_embed(x))
    with pytest.raises(ValueError, match="pass `context`"):
        model(x, t)
    with pytest.raises(ValueError, match="by labels .* or by text"):
        replace(shape, num_classes=3)


# Shards


def _filled(folder, count=10):
    shards = Shards(folder, count, SIZE)
    with start() as accelerator:
        made = shards.fill(
            {"what": "numbers"},
            accelerator,
            lambda items: ({"x": torch.tensor(items)}, {"first": items.start}),
        )
    return shards, made


def test_shards_hold_every_item_once(tmp_path):
    shards, made = _filled(tmp_path)
    assert made == [0, 1, 2] and torch.cat([t["x"] for t, _ in shards]).tolist() == [*range(10)]
    assert _filled(tmp_path)[1] == []
    assert _filled(tmp_path, count=14)[1] == [2, 3]  # the short one is too short now
    with pytest.raises(CheckpointError, match="what: 'letters', was 'numbers'"):
        claim(tmp_path, {"what": "letters", "size": SIZE})


@pytest.mark.parametrize("harm", ["cut", "bit", "swap", "empty", "gone"])
def test_harm_is_noticed(tmp_path, harm, capsys):
    """The negative control: a reader that trusted the files would pass every other test."""
    shards, _ = _filled(tmp_path)
    path = shards.path(1)
    whole = path.read_bytes()
    if harm == "cut":
        path.write_bytes(whole[:-9])
    elif harm == "bit":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif harm == "swap":
        path.write_bytes(shards.path(0).read_bytes())
    elif harm == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    with pytest.raises(ShardError, match="shard-000001"):
        shards.read(1)
    assert _filled(tmp_path)[1] == [1]
    assert ("made again" in capsys.readouterr().out) == (harm != "gone")
    assert shards.read(1)[0]["x"].tolist() == [4, 5, 6, 7]


# Training, sampling and judging in one process


# Fitted with a discrete solver, drawn with the SDE: said once, and meant.
@pytest.mark.filterwarnings("ignore:generate. the exits were fitted on rollouts:UserWarning")
@pytest.mark.parametrize("preset", ["relative", "carried"])
def test_class_conditional(tiny, preset):
    experiment = load(tiny, *CLASSES, f"exits.preset={preset}", "sampling.count=6")
    with start() as accelerator:
        exits = train(experiment, accelerator, tiny / "run")
    with start() as accelerator:
        assert sample(experiment, accelerator, tiny / "samples", exits) == [0, 1]
    images = torch.cat([t["images"] for t, _ in Shards(tiny / "samples", 6, SIZE)])
    assert images.shape == (6, 3, 8, 8) and images.dtype == torch.uint8


def features():
    """A feature space for tests: mean and spread of each channel."""

    class Moments(torch.nn.Module):
        def forward(self, images):
            pixels = images.double().flatten(2) / 255
            return torch.cat([pixels.mean(-1), pixels.std(-1)], dim=1)

    return Moments()


def test_judging(tiny, capsys, monkeypatch):
    experiment = load(tiny)
    with start() as accelerator:
        sample(experiment, accelerator, tiny / "full")
    out, name = tiny / "out", f"{__name__}:features"
    common = [str(tiny / "tiny.toml"), str(tiny / "full"), f"--out={out}", f"--features={name}"]
    evaluate_main([*common, f"--reference={tiny / 'real.safetensors'}", f"--png={tiny / 'png'}"])
    (row,) = json.loads((out / "results.json").read_text())
    assert row["samples"] == COUNT and row["cost"] == 1.0 and row["layers"] == 1.0
    assert row["macs_per_image"] > 0 and row["seconds_per_image"] > 0
    assert row["gflops_per_image"] == pytest.approx(2e-9 * row["macs_per_image"])
    assert row["gflops_per_forward"] == pytest.approx(row["gflops_per_image"] / 4)
    assert len(list((tiny / "png" / "full").glob("*.png"))) == COUNT
    assert (out / "results.md").read_text() == table([row]) and "| tiny |" in table([row])

    # The distance itself, against numpy's covariances.
    real = torch.cat([_moments(Image.open(p)) for p in sorted((tiny / "images").rglob("*.png"))])
    made = torch.cat([features()(t["images"]) for t, _ in Shards(tiny / "full", COUNT, SIZE)])
    covariances = np.cov(real.T.numpy()), np.cov(made.T.numpy())
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).astype(complex)).real.sum()
    gap = float((real.mean(0) - made.mean(0)).square().sum())
    want = gap + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * roots
    assert row["fid"] == pytest.approx(want, rel=1e-4)

    # The same from statistics, and from the kept file, which needs no images any more.
    np.savez(tiny / "stats.npz", mu=real.mean(0).numpy(), sigma=covariances[0])
    for change in (f"source.statistics={tiny / 'stats.npz'}", f"source.root={tiny / 'gone'}"):
        frechet = Frechet(name, 8)
        kept = None if "stats" in change else tiny / "real.safetensors"
        reference(load(tiny, change), frechet, kept, 0)
        again = evaluate(experiment, tiny / "full", frechet)
        assert again["fid"] == pytest.approx(row["fid"], rel=1e-6)

    shards = Shards(tiny / "full", COUNT, SIZE)
    shards.path(3).write_bytes(shards.path(3).read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="shard-000003.*1 of 6 shards have to be made"):
        evaluate(experiment, tiny / "full", frechet)

    find = importlib.util.find_spec
    gone = "torch_fidelity"
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda n, *a: None if n == gone else find(n, *a)
    )
    with pytest.raises(MissingExtraError, match=r"exitkit-torch\[reproduce\]"):
        Frechet(None, 8)


def _moments(image):
    box = image.crop((1, 0, 11, 10)).resize((8, 8), Image.Resampling.BILINEAR)
    return features()(torch.from_numpy(np.array(box)).permute(2, 0, 1)[None])


# Latents and text


def _encoders(folder):
    """A random autoencoder and a random CLIP text model, with a tokenizer of letters."""
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        latent_channels=4,
        sample_size=16,
    ).save_pretrained(folder / "autoencoder")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "text").mkdir()
    (folder / "text" / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "text" / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer.from_pretrained(folder / "text").save_pretrained(folder / "text")
    shape = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
    )
    transformers.CLIPTextModel(shape).save_pretrained(folder / "text")


def test_latents_and_text(tiny):
    _encoders(tiny)
    latents = {
        "root": tiny / "latents",
        "autoencoder": tiny / "autoencoder",
        "scale_factor": 0.23,
        "text_encoder": tiny / "text",
        "shard": 16,
    }
    backbone = {"in_chans": 4, "clip_dim": 12, "num_clip_token": 16}
    guidance = {"scale": 2.0, "drop": 0.5}
    changes = [
        f"source.captions={tiny / 'captions.jsonl'}",
        "source.resolution=16",
        *(f"latents.{name}={value}" for name, value in latents.items()),
        *(f"backbone.shape.{name}={value}" for name, value in backbone.items()),
        *(f"guidance.{name}={value}" for name, value in guidance.items()),
        "schedule=stable-diffusion",
        "sampling.sampler=dpm-solver",
        "sampling.count=6",
        "exits.preset=relative",
    ]
    experiment = load(tiny, *changes)
    with pytest.raises(ConfigError, match=r"examples\.reproduction\.full\.encode"):
        Encoded(tiny / "latents")
    with start() as accelerator:
        assert encode(experiment, accelerator, batch=7) == [0, 1, 2, 3, 4]  # both sides of 40
        assert encode(experiment, accelerator, batch=7) == []
    encoded = Encoded(tiny / "latents")
    assert len(encoded) == 80 and encoded.row("moments", 79).shape == (8, 8, 8)
    one, two = encoded.text(2, 0), encoded.text(2, 1)
    assert one.shape == (16, 12) and not torch.equal(one, two)
    assert torch.equal(encoded.text(2, 2), one)
    torch.testing.assert_close(encoded.text(3, 1), two, rtol=0, atol=1e-2)  # its mirrored side

    examples = [LatentExamples(experiment)[i] for i in range(40)]
    assert examples[0]["x0"].shape == (4, 8, 8)
    empty = encoded.empty()
    dropped = sum(torch.equal(example["context"], empty) for example in examples)
    assert 8 < dropped < 32

    with start() as accelerator:
        exits = train(experiment, accelerator, tiny / "run")
    with start() as accelerator:
        assert sample(experiment, accelerator, tiny / "samples", exits) == [0, 1]
    tensors, facts = Shards(tiny / "samples", 6, SIZE).read(0)
    assert tensors["images"].shape == (4, 3, 16, 16)
    assert facts["forwards"] == 2 * 4 * 4  # both branches, four steps, four samples
    encoded.shards.path(2).unlink()
    with pytest.raises(ConfigError, match="1 of 5 shards are missing"):
        Encoded(tiny / "latents")


# Several processes, one of which dies

KILLER = """
    # Runs a program of examples.reproduction.full and kills this process in the middle of its {n}th file.
    import os, runpy, signal, sys
    from pathlib import Path

    sys.path.insert(0, {root!r})
    import torch

    torch.set_num_threads(1)
    rank, real, done = int(os.environ["RANK"]), os.replace, []

    def replace(source, target):
        if {pattern!r} in str(target) and rank == {rank}:
            done.append(target)
            if len(done) == {n}:
                if Path(source).is_file():
                    whole = Path(source).read_bytes()
                    Path(source).write_bytes(whole[: len(whole) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
        real(source, target)

    os.replace = replace
    sys.argv[0] = "reproduce"
    runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""


def launch(processes, port, target, *arguments):
    """`accelerate launch` on the CPU."""
    # The flag only says "several processes on this machine"; the environment says which device.
    command = [
        *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu"),
        *("--num_machines=1", f"--num_processes={processes}", f"--main_process_port={port}"),
        *("--mixed_precision=no", "--dynamo_backend=no"),
        *target,
        *map(str, arguments),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=900
    )


def killer(folder, module, pattern, n, rank):
    path = folder / "killer.py"
    text = KILLER.format(root=str(ROOT), module=module, pattern=pattern, n=n, rank=rank)
    path.write_text(textwrap.dedent(text))
    return [str(path)]


@pytest.mark.slow
def test_samples_survive_a_kill(tiny):
    """Process 1 of 2 dies within its second shard; three others finish what is missing."""
    experiment, config, out = load(tiny), tiny / "tiny.toml", tiny / "many"
    with start() as accelerator:
        exits = train(load(tiny, "training.steps=2"), accelerator, tiny / "run")
        alone = sample(experiment, accelerator, tiny / "one", exits)
    assert alone == [0, 1, 2, 3, 4, 5]
    module, given = "examples.reproduction.full.sample", (config, "--exits", exits, "--out", out)
    died = launch(2, 29521, killer(tiny, module, "shard-", 2, rank=1), *given)
    assert died.returncode != 0, died.stdout
    survived = {p.name: p.stat().st_mtime_ns for p in out.glob("shard-*")}
    shards = Shards(out, COUNT, SIZE)
    missing, damaged = shards.survey()
    assert damaged == [] and 3 in missing and 1 not in missing  # process 1 had 1, 3 and 5
    with pytest.raises(CheckpointError, match="have to be made"):
        evaluate(experiment, out, Frechet(f"{__name__}:features", 8))

    ended = launch(3, 29522, ["-m", module], *given)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert f"{6 - len(missing)} of 6 shards are there" in ended.stdout
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in (tiny / "one").iterdir())
    for name, when in survived.items():
        assert (out / name).stat().st_mtime_ns == when, "a finished shard was made again"
    seeds = []
    for (many, _), (one, _) in zip(shards, Shards(tiny / "one", COUNT, SIZE), strict=True):
        assert torch.equal(many["images"], one["images"])
        seeds += many["seeds"].tolist()
    assert seeds == list(range(COUNT))


@pytest.mark.slow
def test_training_survives_a_kill(tiny):
    """Process 0 of 2 dies while it writes the checkpoint of step 4; the next run ends the same."""
    config, module = tiny / "tiny.toml", "examples.reproduction.full.train"
    straight = launch(2, 29523, ["-m", module], config, "--out", tiny / "straight")
    assert straight.returncode == 0, straight.stderr[-3000:]
    target = killer(tiny, module, "step-", 2, rank=0)
    died = launch(2, 29524, target, config, "--out", tiny / "run")
    assert died.returncode != 0, died.stdout
    assert [p.name for p in (tiny / "run" / "checkpoints").glob("step-*")] == ["step-00000002"]
    assert not (tiny / "run" / "exits").exists()
    ended = launch(2, 29525, ["-m", module], config, "--out", tiny / "run")
    assert ended.returncode == 0, ended.stderr[-3000:]
    for name in ("exits.safetensors", "backbone.safetensors"):
        one, two = (load_file(tiny / run / "exits" / name) for run in ("straight", "run"))
        assert one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)
    histories = [
        json.loads((tiny / run / "history.json").read_text()) for run in ("straight", "run")
    ]
    assert histories[0] == histories[1] and len(histories[0]) == 6
    other = load(tiny, "training.lr=1.0")
    with start() as accelerator, pytest.raises(CheckpointError, match="begun with other settings"):
        train(other, accelerator, tiny / "run")
