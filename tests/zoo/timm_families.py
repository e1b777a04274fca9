"""The smallest model of every model file of timm, at the smallest image that it takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from exitkit.surgery.inputs import Inputs
from tests.zoo.specimen import Specimen

_MEASURED = 24  # images from which batch norms take their statistics
_SMALLEST = 0.1  # least variance of a channel, in means of its layer: dead ones would be blown up


@dataclass(frozen=True)
class Calibrated(Specimen):
    """A specimen whose batch norms have seen data: under unit statistics its signal fades away."""

    def make(self, seed: int = 0) -> nn.Module:
        """Builds the model as any specimen, then measures batch statistics on noise."""
        model = super().make(seed)
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
        if not norms:
            return model
        momenta = [m.momentum for m in norms]
        for norm in norms:
            norm.train().momentum = 1.0
        with torch.no_grad():
            model(*self.inputs(_MEASURED, seed=1).args)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval().momentum = momentum
            if norm.running_var is not None:
                norm.running_var.clamp_(min=_SMALLEST * float(norm.running_var.mean()))
        return model


def _build(name: str, options: dict[str, Any]) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=10, **options)
    return model


def _draw(side: int, rows: int) -> Inputs:
    return Inputs(torch.randn(rows, 3, side, side))


# module of timm.models, model, side of its images, and arguments
FAMILIES: tuple[tuple[str, str, int, dict[str, Any]], ...] = (
    (
        "beit",
        "beit_base_patch16_224",
        64,
        {"img_size": 64, "embed_dim": 192, "depth": 4, "num_heads": 3},
    ),
    ("byoanet", "halonet_h1", 256, {"img_size": 256}),
    ("byobnet", "test_byobnet", 64, {"img_size": 64}),
    ("cait", "cait_xxs24_224", 64, {"img_size": 64}),
    ("coat", "coat_tiny", 64, {"img_size": 64}),
    ("convit", "convit_tiny", 64, {"img_size": 64}),
    ("convmixer", "convmixer_768_32", 64, {}),
    ("convnext", "test_convnext", 64, {}),
    ("cpubone", "cpubone_nano", 64, {}),
    ("crossvit", "crossvit_tiny_240", 64, {}),
    ("csatv2", "csatv2", 64, {}),
    ("cspnet", "cs3darknet_focus_s", 64, {}),
    ("cspnext", "cspnext_tiny", 64, {}),
    ("davit", "davit_tiny", 64, {}),
    (
        "deepseek_vit",
        "deepseek_vit_412m",
        56,
        {"img_size": 56, "embed_dim": 192, "depth": 4, "num_heads": 3},
    ),
    ("deit", "deit_tiny_patch16_224", 64, {"img_size": 64}),
    ("densenet", "densenet121", 64, {}),
    ("dla", "dla46x_c", 64, {}),
    ("dpn", "dpn48b", 64, {}),
    ("edgenext", "edgenext_xx_small", 64, {}),
    ("efficientformer", "efficientformer_l1", 224, {}),
    ("efficientformer_v2", "efficientformerv2_s0", 64, {"img_size": 64}),
    ("efficientnet", "test_efficientnet", 64, {}),
    ("efficientvim", "efficientvim_m1", 64, {}),
    ("efficientvit_mit", "efficientvit_b0", 64, {}),
    ("efficientvit_msra", "efficientvit_m0", 64, {"img_size": 64}),
    ("eva", "eva02_tiny_patch14_224", 56, {"img_size": 56}),
    ("fasternet", "fasternet_t0", 64, {}),
    ("fastvit", "fastvit_t8", 64, {}),
    ("focalnet", "focalnet_tiny_lrf", 64, {}),
    ("gcvit", "gcvit_xxtiny", 64, {"img_size": 64}),
    (
        "gemma4_vit",
        "gemma4_vit_167m",
        64,
        {
            "img_size": 64,
            "embed_dim": 192,
            "depth": 4,
            "num_heads": 3,
            "intermediate_size": 512,
            "position_embedding_size": 256,
        },
    ),
    ("ghostnet", "ghostnet_050", 64, {}),
    ("hardcorenas", "hardcorenas_b", 96, {}),
    ("hgnet", "hgnetv2_b0", 64, {}),
    ("hiera", "hiera_tiny_224", 64, {"img_size": 64}),
    ("hieradet_sam2", "sam2_hiera_tiny", 64, {}),
    ("hrnet", "hrnet_w18_small", 64, {}),
    ("iformer", "iformer_t", 64, {}),
    ("inception_next", "inception_next_atto", 64, {}),
    ("inception_resnet_v2", "inception_resnet_v2", 96, {}),
    ("inception_v3", "inception_v3", 192, {}),
    ("inception_v4", "inception_v4", 192, {}),
    ("lcnetv2", "lcnetv2_small", 64, {}),
    ("levit", "levit_128s", 64, {"img_size": 64}),
    ("lowformer", "lowformer_b0", 64, {}),
    ("mambaout", "test_mambaout", 64, {}),
    ("maxxvit", "test_coatnet", 64, {"img_size": 64}),
    ("metaformer", "poolformerv2_s12", 64, {}),
    ("mlp_mixer", "resmlp_12_224", 64, {"img_size": 64}),
    ("mobilenetv3", "mobilenetv3_small_050", 64, {}),
    ("mobilenetv5", "mobilenetv5_300m", 64, {"channel_multiplier": 0.125}),
    ("mobilevit", "mobilevit_xxs", 64, {}),
    ("mvitv2", "mvitv2_tiny", 64, {"img_size": 64}),
    ("naflexvit", "naflexvit_base_patch16_gap", 64, {"embed_dim": 192, "depth": 4, "num_heads": 3}),
    ("nasnet", "nasnetalarge", 96, {"num_features": 768, "stem_size": 24}),
    ("nest", "nest_tiny", 64, {"img_size": 64}),
    ("nextvit", "nextvit_small", 64, {"depths": (1, 1, 5, 1)}),
    ("nfnet", "test_nfnet", 64, {}),
    ("pit", "pit_xs_224", 64, {"img_size": 64}),
    ("pnasnet", "pnasnet5large", 96, {}),
    ("pvt_v2", "pvt_v2_b0", 64, {}),
    (
        "qwen3_vit",
        "qwen3_vit_306m",
        64,
        {"img_size": 64, "embed_dim": 192, "depth": 4, "num_heads": 3},
    ),
    ("rdnet", "rdnet_tiny", 64, {}),
    ("regnet", "regnetx_002", 64, {}),
    ("repghost", "repghostnet_050", 64, {}),
    ("repvit", "repvit_m0_9", 64, {}),
    ("res2net", "res2net50_14w_8s", 64, {}),
    ("resnest", "resnest14d", 64, {}),
    ("resnet", "test_resnet", 64, {}),
    ("resnetv2", "resnetv2_18", 64, {}),
    ("rexnet", "rexnet_100", 96, {}),
    ("selecsls", "selecsls42", 96, {}),
    ("senet", "legacy_seresnet18", 64, {}),
    ("sequencer", "sequencer2d_s", 64, {"img_size": 64}),
    ("shvit", "shvit_s1", 64, {}),
    ("sknet", "skresnet18", 64, {}),
    ("starnet", "starnet_s050", 64, {}),
    ("swiftformer", "swiftformer_xs", 64, {}),
    ("swin_transformer", "swin_tiny_patch4_window7_224", 64, {"img_size": 64}),
    ("swin_transformer_v2", "swinv2_tiny_window8_256", 64, {"img_size": 64}),
    ("swin_transformer_v2_cr", "swinv2_cr_tiny_224", 64, {"img_size": 64}),
    ("tiny_vit", "tiny_vit_5m_224", 64, {}),
    ("tnt", "tnt_s_legacy_patch16_224", 64, {"img_size": 64}),
    ("tresnet", "tresnet_m", 64, {"width_factor": 0.5}),
    ("twins", "twins_svt_small", 64, {"img_size": 64}),
    ("vgg", "vgg11", 64, {"mlp_ratio": 0.02}),
    ("visformer", "visformer_tiny", 64, {"img_size": 64}),
    ("vision_transformer", "test_vit", 64, {"img_size": 64}),
    ("vision_transformer_hybrid", "vit_tiny_r_s16_p8_224", 64, {"img_size": 64}),
    ("vision_transformer_relpos", "test_vit_relpos", 64, {"img_size": 64}),
    (
        "vision_transformer_sam",
        "samvit_base_patch16",
        64,
        {
            "img_size": 64,
            "embed_dim": 192,
            "depth": 4,
            "num_heads": 3,
            "global_attn_indexes": (1, 3),
        },
    ),
    ("vitamin", "vitamin_small_224", 64, {"img_size": 64}),
    ("volo", "volo_d1_224", 64, {"img_size": 64}),
    ("vovnet", "ese_vovnet19b_slim_dw", 64, {}),
    ("xception", "legacy_xception", 96, {}),
    ("xception_aligned", "xception41", 64, {}),
    ("xcit", "xcit_nano_12_p16_224", 64, {"img_size": 64}),
)

SPECIMENS = tuple(
    Calibrated(f"timm.{name}", partial(_build, name, options), partial(_draw, side), note=module)
    for module, name, side, options in FAMILIES
)
