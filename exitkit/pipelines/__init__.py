"""Early exit inside diffusers pipelines, which stay the pipelines they were.

The denoiser stays the object that the pipeline holds: `isinstance`, `config`, `save_pretrained`,
offloading and callbacks see what they saw before. Only its calls take the way through the exits, and
the denoising loop is a trajectory.
"""

from __future__ import annotations

from exitkit.model import ExitModels
from exitkit.pipelines.enabling import disable_early_exit, enable_early_exit, is_pipeline
from exitkit.pipelines.sampler import PipelineSampler
from exitkit.pipelines.verbs import inspect, unwrap, wrap

__all__ = [
    "ExitModels",
    "PipelineSampler",
    "disable_early_exit",
    "enable_early_exit",
    "inspect",
    "is_pipeline",
    "unwrap",
    "wrap",
]
