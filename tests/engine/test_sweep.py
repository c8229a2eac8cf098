"""Real numbers: maps of many architectures, of every timm module and every kind of tail, add up to the logits.

``pytest -m zoo -k sweep`` sweeps all and prints the worst ten. Weights are random and jittered (a fresh
mixer's head is zero, and every check would pass on nothing), inputs small where the architecture takes small ones.
"""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch

import camhook
from camhook.cli.check import jitter
from camhook.cli.models import in_parallel

NUM_CLASSES = 40  # more than the engine takes one by one, so that "all" goes its own way
SMALL = 128
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Measured:
    """How far an architecture's maps miss its logits, relative to the largest."""

    name: str
    family: str
    parameters: float
    input_size: tuple[int, int]
    head: str
    grid_size: tuple[int, int]
    passes: int
    missed: float
    missed_all: float
    differs: float
    offset_share: float
    seconds: float

    def __str__(self) -> str:
        size, grid = ("x".join(map(str, pair)) for pair in (self.input_size, self.grid_size))
        return (
            f"{self.name:38} {self.family:24} {self.parameters:6.1f} M  {size:8} {self.head:28} {grid:6} "
            f"{self.passes}  {self.missed:.1e}  {self.missed_all:.1e}  {self.differs:.1e}  {self.offset_share:4.0%}  "
            f"{self.seconds:4.1f} s"
        )


def made(name: str) -> tuple[Any, tuple[int, int]]:
    """Make an architecture for a small input, if it can be, and say for which."""
    name, _, given = name.partition(":")
    extra = {key: int(value) for key, value in (pair.split("=") for pair in given.split(",") if pair)}
    for options in ({"img_size": SMALL} | extra, extra):
        try:
            with torch.device("meta"):
                model: Any = timm.create_model(name, num_classes=NUM_CLASSES, **options).eval()
                config = timm.data.resolve_model_data_config(model)
                for size in ((SMALL, SMALL), config["input_size"][1:]):
                    if size == (SMALL, SMALL) or "img_size" not in options:
                        try:
                            model(torch.empty(2, config["input_size"][0], *size))
                        except (RuntimeError, AssertionError, ValueError):
                            continue
                        with torch.device("cpu"):
                            return timm.create_model(name, num_classes=NUM_CLASSES, **options).eval(), tuple(size)
        except (TypeError, RuntimeError, AssertionError, ValueError):
            continue
    raise AssertionError(f"{name} runs on no input")


def measured(name: str) -> Measured:
    """Explain two random images for a few classes and for all."""
    started = time.perf_counter()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's own, of deprecated names and the like
        model, size = made(name)
    jitter(model)
    cam = camhook.wrap(model, input_size=size)
    channels = timm.data.resolve_model_data_config(model)["input_size"][0]
    images = torch.randn(2, channels, *size)
    few, every = cam(images, [[1, 2], [3, 4]]), cam(images, "all")
    largest = every.logits.abs().amax(1, keepdim=True)
    same = every.maps.gather(1, few.target[..., None, None].expand_as(few.maps))
    found = cam.describe()
    return Measured(
        name,
        timm.models.model_entrypoint(name.split(":")[0]).__module__.removeprefix("timm.models."),
        sum(p.numel() for p in model.parameters()) / 1e6,
        size,
        f"{found.pooling}/{found.tail}",
        found.grid_size,
        found.forward_passes,
        float((few.completeness_error / largest).max()),
        float((every.completeness_error / largest).max()),
        float((same - few.maps).abs().max() / few.maps.abs().max()),
        float(every.offset_share.median()),
        time.perf_counter() - started,
    )


# Every timm module, by what its tails do: affine, norm, activations, class tokens, pools of all kinds. After a colon
# come options that make an architecture small enough.
SWEPT = """
beit_base_patch16_224 beitv2_base_patch16_224 eca_botnext26ts_256 eca_halonext26ts lambda_resnet26t test_byobnet
mobileone_s0 repvgg_a0 gcresnet50t bat_resnext26ts regnetz_b16_evos resnet50_clip resnet50_clip_gap resnet50_mlp
cait_xxs24_224 cait_xs24_384 coat_tiny coat_mini coat_lite_mini coat_lite_medium convit_tiny convit_small
convmixer_768_32 convmixer_1024_20_ks9_p14 test_convnext test_convnext3 convnext_atto_ols convnextv2_atto
convnext_zepto_rms convnext_zepto_rms_ols convnext_tiny_hnf cpubone_nano cpubone_b0_bfrobust crossvit_tiny_240
crossvit_9_dagger_240 crossvit_15_240 csatv2 csatv2_21m cs3darknet_focus_m darknet17 cspresnet50 cspresnext50
cs3se_edgenet_x cspnext_tiny cspnext_s davit_tiny davit_base_fl deepseek_vit_412m:depth=2 deit_tiny_patch16_224
deit_tiny_distilled_patch16_224 deit_base_distilled_patch16_384 deit3_small_patch16_224 densenet121 densenetblur121d
dla46_c dla60x_c dla60_res2net dpn48b dpn68 edgenext_xx_small edgenext_small_rw efficientformer_l1
efficientformerv2_s0 efficientformerv2_s1 test_efficientnet test_efficientnet_evos mobilenetv2_035 tinynet_e
tf_mixnet_s efficientnet_lite0 mnasnet_small efficientnetv2_rw_t efficientvim_m1 efficientvim_m2_dist efficientvit_b0
efficientvit_b1 efficientvit_l1 efficientvit_m0 efficientvit_m3 eva02_tiny_patch14_224 eva02_base_patch16_clip_224
vit_pe_core_tiny_patch16_384 vit_pe_spatial_tiny_patch16_512 vit_small_patch16_dinov3 vit_small_patch16_dinov3_qkvb
vit_small_patch16_rope_224 vit_small_patch16_rope_mixed_ape_224 vit_base_patch16_sapiens2
vit_small_plus_patch16_dinov3 fasternet_t0 fasternet_t1 fastvit_t8 fastvit_mci0 fastvit_sa12 focalnet_tiny_srf
focalnet_tiny_lrf gcvit_xxtiny gemma4_vit_167m ghostnet_050 ghostnetv2_100 ghostnetv3_050 hardcorenas_a hgnetv2_b0
hgnet_tiny hiera_tiny_224 hiera_small_abswin_256 sam2_hiera_tiny hieradet_small hrnet_w18_small hrnet_w18_ssld
iformer_t iformer_s iformer_m_distilled inception_next_atto inception_next_tiny inception_resnet_v2 inception_v3
inception_v4 lcnetv2_small lcnetv2_base levit_128s levit_conv_128s levit_256d lowformer_b0 lowformer_e1 test_mambaout
mambaout_femto test_coatnet test_maxvit coatnet_nano_rw_224 maxvit_tiny_tf_224 maxvit_pico_rw_256
maxxvitv2_nano_rw_256 poolformer_s12 poolformerv2_s12 convformer_s18 caformer_s18 mixer_s32_224 mixer_s16_224
gmlp_ti16_224 gmixer_12_224 resmlp_12_224 mobilenetv3_small_050 tf_mobilenetv3_small_minimal_100
mobilenetv4_conv_small_035 mobilenetv4_hybrid_medium fbnetv3_b lcnet_035 mobilenetv5_base mobilevit_xxs
mobilevitv2_050 mvitv2_tiny mvitv2_small_cls mvitv2_base_cls naflexvit_base_patch16_gap naflexvit_base_patch16_map
naflexvit_so150m2_patch16_reg1_gap naflexvit_base_patch16_siglip nasnetalarge nest_tiny_jx nest_tiny nextvit_small
test_nfnet nf_regnet_b0 nf_seresnet26 nfnet_l0 dm_nfnet_f0 pit_ti_224 pit_ti_distilled_224 pit_s_224 pnasnet5large
pvt_v2_b0 pvt_v2_b2_li qwen3_vit_88m rdnet_tiny regnetx_002 regnety_002 regnetz_005 regnetv_040 repghostnet_050
repghostnet_100 repvit_m1 repvit_m0_9 res2net50_48w_2s res2next50 resnest14d resnest26d test_resnet resnet10t
resnet18d seresnet50 ecaresnet26t resnetblur18 resnetaa34d resnetrs50 resnext50_32x4d resnetv2_18 resnetv2_18d
resnetv2_50x1_bit resnetv2_50d_evos rexnet_100 rexnetr_100 selecsls42 selecsls60b legacy_seresnet18
legacy_seresnext26_32x4d legacy_senet154 sequencer2d_s shvit_s1 shvit_s4 skresnet18 skresnext50_32x4d starnet_s050
starnet_s1 swiftformer_xs swin_tiny_patch4_window7_224 swin_s3_tiny_224 swinv2_tiny_window8_256 swinv2_cr_tiny_ns_224
swinv2_cr_tiny_384 tiny_vit_5m_224 tnt_s_patch16_224 tnt_s_legacy_patch16_224 tresnet_m tresnet_v2_l twins_pcpvt_small
twins_svt_small vgg11 vgg11_bn visformer_tiny visformer_small test_vit test_vit2 test_vit3 test_vit4
vit_tiny_patch16_224 vit_small_patch32_224 vit_small_patch14_dinov2 vit_small_patch14_reg4_dinov2
vit_base_patch32_clip_224 vit_base_patch32_clip_quickgelu_224 vit_base_patch16_siglip_224
vit_base_patch16_siglip_gap_224 vit_wee_patch16_reg1_gap_256 vit_medium_patch16_gap_240
vit_little_patch16_reg1_gap_256 vit_base_patch16_xp_224 vit_small_patch16_18x2_224 vit_base_patch16_rpn_224
vit_dpwee_patch16_reg1_gap_256 vit_xsmall_patch16_clip_224 vit_base_patch16_224_miil beit3_base_patch16_224
vit_tiny_r_s16_p8_224 vit_base_resnet26d_224 vit_small_r26_s32_224 vit_base_mci_224 test_vit_relpos
vit_relpos_small_patch16_224 vit_relpos_medium_patch16_cls_224 vit_srelpos_small_patch16_224
vit_relpos_base_patch32_plus_rpn_256 samvit_base_patch16_224 vitamin_small_224 volo_d1_224 ese_vovnet19b_slim
ese_vovnet39b_evos eca_vovnet39b vovnet39a legacy_xception xception41 xception41p xcit_nano_12_p16_224
xcit_nano_12_p8_224 xcit_tiny_12_p16_224
""".split()  # noqa: SIM905 (as text, many names are read at a glance)

TINY = """
test_byobnet test_convnext test_convnext2 test_efficientnet test_efficientnet_evos test_efficientnet_ln test_coatnet
test_mambaout test_maxvit test_nfnet test_resnet test_vit test_vit2 test_vit3 test_vit4 test_vit_relpos
mobilenetv3_small_050 mobilenetv4_conv_small_035 convnext_zepto_rms deit_tiny_distilled_patch16_224 pit_ti_distilled_224
xcit_nano_12_p16_224 levit_128s efficientvit_m0 coat_lite_tiny
""".split()  # noqa: SIM905 (as text, many names are read at a glance)

HEADER = (
    f"{'architecture':38} {'module':24} {'size':>8}  {'input':8} {'pooling/tail':28} {'grid':6} passes, missed for few "
    "and for all, difference, offset, time"
)


@pytest.fixture(scope="module")
def swept(pytestconfig: pytest.Config) -> Mapping[str, Measured | str]:
    """Measure all, in parallel, and write what was found to the terminal."""
    found: dict[str, Measured | str] = {}
    for name, told in in_parallel(attempted, SWEPT, os.cpu_count() or 1):
        found[name] = "the process died" if told is None else told
    had = [each for each in found.values() if isinstance(each, Measured)]
    worst = sorted(had, key=lambda each: max(each.missed, each.missed_all), reverse=True)
    shares = sorted((each for each in had if each.head.startswith("attention")), key=lambda each: each.offset_share)
    lines = [
        f"{len(had)} of {len(found)} architectures of {len({each.family for each in had})} modules. The worst ten:",
        *[HEADER, *map(str, worst[:10])],
        "The offset's share where class tokens or attention pools read, the least three and the largest three:",
        *map(str, shares[:3] + shares[-3:]),
        "Medians of the offset's share:",
    ]
    for head in sorted({each.head for each in had}):
        of_head = [each.offset_share for each in had if each.head == head]
        lines.append(f"{head:28} {statistics.median(of_head):4.0%} of {len(of_head)}")
    writer = pytestconfig.get_terminal_writer()
    for line in ["", *lines]:
        writer.line(line)
    return found


def attempted(name: str) -> Measured | str:
    """Return what was measured, or why it could not be."""
    try:
        return measured(name)
    except Exception as error:  # the sweep goes on; the test of that name fails
        return f"{type(error).__name__}: {error}"


def test_the_sweep_covers_every_module() -> None:
    modules = {timm.models.model_entrypoint(name).__module__ for name in timm.list_models()}
    assert {timm.models.model_entrypoint(name.split(":")[0]).__module__ for name in SWEPT} == modules
    assert len(set(SWEPT)) == len(SWEPT) >= 200


@pytest.mark.zoo
@pytest.mark.parametrize("name", SWEPT)
def test_maps_add_up_to_the_logits(name: str, swept: Mapping[str, Measured | str]) -> None:
    check(swept[name])


@pytest.mark.parametrize("name", TINY)
def test_maps_of_a_small_architecture_add_up(name: str) -> None:
    check(measured(name))


def check(found: Measured | str) -> None:
    assert isinstance(found, Measured), found
    assert found.missed < TOLERANCE, found
    assert found.missed_all < TOLERANCE, found
    assert found.differs < 1e-3, found  # the two ways to a map, by slopes and by positions, agree
