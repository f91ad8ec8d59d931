"""The published schedule, epoch by epoch (method page, sections 5 to 7), and what settings refuse."""

import dataclasses
import json

import pytest

from sdcl.config import PRESETS, Config, ModelConfig
from sdcl.errors import UserError

SYSU, REGDB = PRESETS["sysu"], PRESETS["regdb"]


@pytest.mark.parametrize("config, epoch, stage, steps, rate, k1", [
    (SYSU, 0, 1, 200, 3.5e-4, 30),
    (SYSU, 19, 1, 200, 3.5e-4, 30),
    (SYSU, 20, 1, 200, 3.5e-5, 30),
    (SYSU, 29, 1, 200, 3.5e-5, 30),
    (SYSU, 30, 2, 100, 3.5e-5, 15), (SYSU, 40, 2, 100, 3.5e-6, 15), (SYSU, 49, 2, 100, 3.5e-6, 15),
    (REGDB, 0, 1, 50, 3.5e-4, 30),
    (REGDB, 19, 1, 50, 3.5e-4, 30),
    (REGDB, 20, 2, 50, 3.5e-5, 30),
    (REGDB, 29, 2, 50, 3.5e-5, 30),
])  # fmt: skip
def test_schedule(config, epoch, stage, steps, rate, k1):
    at = config.at(epoch)
    assert (at.stage, at.steps, at.k1_visible, at.k1_infrared) == (stage, steps, k1, 30)
    assert at.learning_rate == pytest.approx(rate)


@pytest.mark.parametrize("config, epoch, homogeneous, visible_infrared, infrared_visible, momentum", [
    (SYSU, 0, 1.0, 0, 0, 0.1), (SYSU, 9, 1.0, 0, 0, 0.1), (SYSU, 10, 1.0, 0.05, 0, 0.1), (SYSU, 11, 1.0, 0, 0.5, 0.1),
    (SYSU, 30, 0.1, 0.01, 0, 0.1), (SYSU, 31, 0.1, 0, 0.1, 0.1),
    (REGDB, 0, 0, 0, 0, 0.99),
    (REGDB, 1, 1.0, 0, 0, 0.1),
    (REGDB, 11, 1.0, 0, 0.5, 0.1),
    (REGDB, 20, 0.1, 0.01, 0, 0.1),
])  # fmt: skip
def test_weights(config, epoch, homogeneous, visible_infrared, infrared_visible, momentum):
    at = config.at(epoch)
    assert at.homogeneous_weight == pytest.approx(homogeneous)
    assert at.visible_to_infrared_weight == pytest.approx(visible_infrared)
    assert at.infrared_to_visible_weight == pytest.approx(infrared_visible)
    assert at.cluster_momentum == momentum


def test_published_numbers():
    assert (SYSU.epochs, SYSU.stage2_from, SYSU.eps, SYSU.association_k, SYSU.batch_size) == (50, 30, 0.6, 20, 128)
    assert (REGDB.epochs, REGDB.stage2_from, REGDB.eps, REGDB.association_k, REGDB.batch_size) == (30, 20, 0.3, 10, 128)
    for config in (SYSU, REGDB):
        assert (config.k2, config.min_samples, config.smooth_k, config.seed, config.bn_replicas, config.lr_step) == (
            6,
            4,
            5,
            1,
            2,
            20,
        )
        assert (config.weight_decay, config.sgd_momentum, config.temperature, config.precision) == (
            5e-4,
            0.9,
            0.05,
            "fp32",
        )
        assert config.model.grid == (18, 9) and config.model.drop_path == 0.1
    assert ModelConfig().pretrained is None


def test_parts_can_be_left_out():
    without = dataclasses.replace(SYSU, cnl=False, cra=False)
    at = without.at(40)
    assert (
        at.stage == 1 and at.homogeneous_weight == at.visible_to_infrared_weight == at.infrared_to_visible_weight == 0
    )


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_settings_survive_json(preset):
    config = PRESETS[preset]
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_a_cache_folder_survives_json_and_earlier_settings_have_none():
    saved = json.loads(json.dumps(dataclasses.replace(SYSU, image_cache=SYSU.data_dir / "cache").to_json()))
    assert Config.from_json(saved).image_cache == SYSU.data_dir / "cache"
    del saved["image_cache"], saved["augment"]
    assert Config.from_json(saved) == SYSU


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SYSU.eps = 0.5


def test_shipped_weights_are_the_same_in_another_checkout():
    demo = PRESETS["demo"]

    def starting_from(path):
        return dataclasses.replace(demo, model=dataclasses.replace(demo.model, pretrained=path))

    assert not starting_from("/elsewhere/sdcl/assets/demo_backbone.pth").differences(demo)
    for other in ("/elsewhere/sdcl/assets/other.pth", "/elsewhere/demo_backbone.pth", "demo_backbone.pth"):
        assert starting_from(other).differences(demo) == [f"--pretrained {other} (was {demo.model.pretrained})"]


def test_differences_name_what_changes_the_result():
    other = dataclasses.replace(
        SYSU,
        eps=0.5,
        workers=3,
        accumulate=2,
        compile=True,
        channels_last=True,
        parallel="none",
        image_cache=SYSU.data_dir,
        augment="device",
        run_dir=SYSU.run_dir / "x",
        model=dataclasses.replace(SYSU.model, depth=6),
    )
    assert sorted(other.differences(SYSU)) == [
        "--augment device (was workers)",
        "--depth 6 (was 12)",
        "--eps 0.5 (was 0.6)",
    ]


@pytest.mark.parametrize("change", [
    {"epochs": 0}, {"eps": 1.5}, {"k1": 0}, {"instances": 0},
    {"trial": 3}, {"bn_replicas": 0}, {"identities": 1, "instances": 2}, {"lr_step": 0},
    {"accumulate": 0}, {"compile": True, "parallel": "dp"},
])  # fmt: skip
def test_impossible_settings_are_refused(change):
    with pytest.raises(UserError):
        dataclasses.replace(SYSU, **change)


@pytest.mark.parametrize("change", [{"image_height": 290}, {"image_width": 0}, {"heads": 7}, {"depth": 1}])
def test_impossible_networks_are_refused(change):
    with pytest.raises(UserError):
        ModelConfig(**change)
