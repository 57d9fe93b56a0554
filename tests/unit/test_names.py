"""Checks of values: what they take, what they refuse, and what they say."""

import math
import tracemalloc
from typing import get_args

import numpy as np
import pytest
import torch

from specreg.experiments.config import DataConfig, ModelConfig, RecordConfig, Settings
from specreg.experiments.methods import GuardOptions, MethodOptions
from specreg.losses import LOSSES, LossName
from specreg.monitor.detector import Detector
from specreg.monitor.monitor import Monitor
from specreg.names import STATES, State, checked_keep, default_groups, integer, suggestion
from specreg.training.loop import TrainingConfig

NO_INTEGERS = [
    True, 3.0, "3", None, math.nan, np.float64(3), np.bool_(True), [3], np.array([3]), np.array(True),
    torch.tensor(True), torch.tensor(3.0), torch.tensor([3]), torch.empty((), dtype=torch.int64, device="meta"),
]  # fmt: skip


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor(3).char()])
def test_integers_of_any_library_become_ints(value):
    assert type(integer("every", value, at_least=1)) is int
    assert integer("every", value) == 3


@pytest.mark.parametrize("value", NO_INTEGERS)
def test_what_is_no_integer_is_refused(value):
    with pytest.raises(ValueError, match="every must be an integer of at least 1, got "):
        integer("every", value, at_least=1)
    with pytest.raises(ValueError, match=r"keep must be a fraction of r in .*, got "):
        checked_keep(value)
    with pytest.raises(ValueError, match="every must be an integer, got "):
        integer("every", value)


def test_bounds_are_named_and_belong_to_the_range():
    assert [integer("n", value, at_least=-2, at_most=2) for value in (-2, 2)] == [-2, 2]
    with pytest.raises(ValueError, match="n must be an integer of at least -2, got -3"):
        integer("n", -3, at_least=-2)
    with pytest.raises(ValueError, match="n must be an integer of at most 2, got 3"):
        integer("n", 3, at_most=2)
    with pytest.raises(ValueError, match="n must be an integer of at most 9007199254740992, got "):
        integer("n", 2**53 + 1)


def test_numpy_integers_reach_the_library():
    from torch import nn

    assert type(Monitor(nn.Sequential(nn.Linear(4, 4)), every=np.int32(5), detector=Detector()).every) is int
    kept = [checked_keep(value) for value in (np.int64(3), torch.tensor(3), np.float32(0.5), 1.0)]
    assert [(value, type(value)) for value in kept] == [(3, int), (3, int), (0.5, float), (1.0, float)]


@pytest.mark.parametrize("value", [1, np.int64(1), torch.tensor(1)])
def test_keep_that_could_be_all_or_the_first_alone_is_refused(value):
    with pytest.raises(ValueError, match=r"keep=1 could be all .* or the first alone: write 1\.0 for all"):
        checked_keep(value)


def test_the_words_of_a_type_are_the_keys_of_what_they_choose():
    assert get_args(LossName) == tuple(LOSSES)
    assert get_args(State) == STATES


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"precision": "float8"}, "precision must be one of float32, bf16, got 'float8'"),
        ({"methods": MethodOptions(guard=GuardOptions(evidence="sn"))}, "evidence must be one of any, .*got 'sn'"),
        ({"data": DataConfig(data_split="all")}, "data_split must be one of train, test, unlabeled, got 'all'"),
        (
            {"model": ModelConfig(network="unet")},
            "network must be one of auto, resnet, dcgan, unrolled, mlp, got 'unet'",
        ),
        ({"training": TrainingConfig(lr_decay="cosine")}, "lr_decay must be one of linear, none, got 'cosine'"),
        ({"training": TrainingConfig(loss=("hinge",))}, r"loss must be one of hinge, .*, got \('hinge',\)"),
        ({"records": RecordConfig(features="clip")}, "features must be one of auto, digits, .*inception, got 'clip'"),
    ],
)
def test_a_choice_that_the_type_does_not_have_is_refused(part, message):
    with pytest.raises(ValueError, match=message):
        Settings(**part)


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        ("", {}),
        ("a", {"": "a"}),
        ("a.b", {"": "a.b"}),
        ("conv body.0 body.1 last", {"": "conv body.0 body.1 last"}),
        ("G.a G.b D.a D.b.c", {"G": "G.a G.b", "D": "D.a D.b.c"}),
        ("D.a G.a D.b G.b", {"D": "D.a D.b", "G": "G.a G.b"}),
        ("x.G.a x.G.b x.D.a x.D.b", {"x.G": "x.G.a x.G.b", "x.D": "x.D.a x.D.b"}),
        ("one G.a G.b D.a D.b two.w", {"G": "G.a G.b", "D": "D.a D.b", "": "one two.w"}),
        ("x.G.a x.G.b x.D.a x.D.b y", {"": "x.G.a x.G.b x.D.a x.D.b y"}),
        ("x.G.a x.G.b x.D.a x.D.b y.a y.b", {"x": "x.G.a x.G.b x.D.a x.D.b", "y": "y.a y.b"}),
        ("x.a x.b x.c", {"": "x.a x.b x.c"}),
        ("x x.G.a x.G.b x.D.a x.D.b", {"x.G": "x.G.a x.G.b", "x.D": "x.D.a x.D.b", "": "x"}),
        ("G.a Gen.b Gen.a G.b", {"G": "G.a G.b", "Gen": "Gen.b Gen.a"}),
        ("n.0.a n.0.b n.1.a n.1.b n.2.a", {"n.0": "n.0.a n.0.b", "n.1": "n.1.a n.1.b", "": "n.2.a"}),
        ("m.1 m.10.a m.10.b m.11.a m.11.b m.26", {"": "m.1 m.10.a m.10.b m.11.a m.11.b m.26"}),
    ],
)
def test_networks_are_told_apart_by_the_names_of_their_layers(names, groups):
    assert default_groups(names.split()) == {group: tuple(layers.split()) for group, layers in groups.items()}


@pytest.mark.parametrize(
    ("children", "num_groups"),
    [
        ("layer1 layer2 layer3", 1), ("b16 b8 b4", 1), ("block_1 block_2 head", 1), ("0 1", 2), ("D1 D2", 2),
        ("netD_0 netD_1", 2), ("disc1 disc2", 2), ("body head", 2),
    ],
)  # fmt: skip
def test_numbered_parts_of_a_network_are_one(children, num_groups):
    names = [f"{child}.{layer}" for child in children.split() for layer in ("a", "b")]
    assert len(default_groups(names)) == num_groups


def test_what_is_near_a_name_of_many_parts_takes_no_memory():
    tracemalloc.start()
    tracemalloc.reset_peak()
    try:
        assert suggestion("x", ["a" + ".a" * 20_000]) == ""
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


def test_names_of_a_million_parts_are_grouped_at_once():
    deep = "." * 10**6
    assert list(default_groups([f"{deep}{last}" for last in ("a.1", "a.2", "b.1", "b.2")])) == [f"{deep}a", f"{deep}b"]
