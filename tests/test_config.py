"""Config: presets, overrides and their round trips; no field that nobody reads.

What a wrong key or value is told; what an old key is told.
"""

import ast
import dataclasses
import functools
import json
import math
import typing
from pathlib import Path

import pytest

import hqvae
from hqvae.config import Config, PhaseConfig, TemperatureConfig, TrainConfig, check_together
from hqvae.config_class import field_docs
from hqvae.errors import InputError
from hqvae.overrides import difference, flatten, from_dict, override, to_dict
from hqvae.presets import PRESETS, describe, preset

SQVAE, SQVAE2, VQVAE = (PRESETS[name] for name in ("sqvae", "sqvae2", "vqvae-paper"))


# ------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_survives_plain_values_and_json(name):
    config = preset(name)
    assert from_dict(to_dict(config)) == config
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert override(config, []) == config


@pytest.mark.parametrize("name", PRESETS)
def test_every_key_can_be_set_to_what_it_is(name):
    config = preset(name)
    assert (
        override(
            config,
            [f"{key}={json.dumps(value)}" for key, value in flatten(to_dict(config)).items()],
        )
        == config
    )


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_listed_as_settings_that_can_be_copied(name):
    """Each below a comment that says what it is, at most 80 columns wide."""
    config = preset(name)
    lines = list(describe(config))
    assert max(map(len, lines)) <= 80
    given = [line for line in lines if line and not line.startswith("#")]
    assert override(config, given) == config
    keys = [line.split("=")[0] for line in given]
    flat = flatten(to_dict(config))
    assert all(any((key + ".").startswith(known + ".") for known in keys) for key in flat)
    below = [lines[lines.index(line) - 1] for line in given]
    assert all(line.startswith("# ") and len(line) > 2 for line in below)


def test_a_kind_is_listed_with_the_kinds_that_there_are():
    lines = list(describe(preset("vqvae")))
    before = lines[lines.index("model.quantizer.kind=deterministic") - 1]
    assert before == "# how codes are chosen (stochastic, deterministic, external)"


SETTINGS = {
    "train.lr=3e-4": ("train.lr", 3e-4),
    "train.lr=1e-3": ("train.lr", 1e-3),
    "train.steps=1e3": ("train.steps", 1000),
    "train.clip=1": ("train.clip", 1.0),
    "train.weight_ema=null": ("train.weight_ema", None),
    "train.compile=true": ("train.compile", True),
    "phases.temperature.end=0.1": ("phases.temperature.end", 0.1),
    "phases.temperature.decay=1e-5": ("phases.temperature.decay", 1e-5),
    "model.quantizer.beta=0": ("model.quantizer.beta", 0.0),
    "model.net.widths=[8,16]": ("model.net.widths.1", 16),
    "model.levels.0.codebook_size=1024": ("model.levels.0.codebook_size", 1024),
    "model.levels.-1.layers=3": ("model.levels.1.layers", 3),
    "data.source=a: b=c": ("data.source", "a: b=c"),
    'data.source="2024"': ("data.source", "2024"),
    "data.source='1e3'": ("data.source", "1e3"),
    "data.source=~/pictures": ("data.source", "~/pictures"),
}


@pytest.mark.parametrize("setting", [s for s in SETTINGS if ": b" not in s])
def test_a_setting_changes_its_key_and_no_other(setting):
    key, value = SETTINGS[setting]
    before, after = flatten(to_dict(SQVAE2)), flatten(to_dict(override(SQVAE2, [setting])))
    assert after[key] == value and type(after[key]) is type(value)
    assert {k for k in before if before[k] != after[k]} <= {
        key,
        key.replace("widths.1", "widths.0"),
    }


def test_a_later_setting_wins_over_an_earlier_one():
    assert override(SQVAE, ["train.lr=1", "train.lr=2"]).train.lr == 2
    assert override(
        SQVAE, ["phases.temperature={start: 2}", "phases.temperature.end=0.5"]
    ).phases.temperature == TemperatureConfig(2, 0.5)
    levels = override(
        SQVAE, ["model.levels=[{stride: 8}, {stride: 4}]", "model.levels.1.layers=3"]
    ).model.levels
    assert [(level.stride, level.layers) for level in levels] == [(8, 1), (4, 3)]


def test_override_leaves_the_given_config_alone():
    before = to_dict(SQVAE)
    override(SQVAE, ["model.levels.0.stride=2", "train.lr=1"])
    assert to_dict(SQVAE) == before


# ------------------------------------------------------------------------------ kinds


@pytest.mark.parametrize(
    ("config", "settings", "key", "value"),
    [
        (
            SQVAE,
            ["model.quantizer.kind=deterministic", "model.quantizer.decay=0.9"],
            "model.quantizer.decay",
            0.9,
        ),
        (
            SQVAE,
            ["model.quantizer.kind=deterministic", "model.quantizer.restart=true"],
            "model.quantizer.restart",
            True,
        ),
        (
            SQVAE,
            ["model.quantizer.init.kind=random", "model.quantizer.init.s2=3"],
            "model.quantizer.init.s2",
            3.0,
        ),
        (
            VQVAE,
            ["model.quantizer.init.kind=kmeans", "model.quantizer.init.sharpness=4"],
            "model.quantizer.init.sharpness",
            4.0,
        ),
        (
            preset("vqvae"),
            ["model.quantizer.kind=stochastic", "model.quantizer.variance=one_plus_exp"],
            "model.quantizer.variance",
            "one_plus_exp",
        ),
        (
            VQVAE,
            ["model.quantizer.kind=external", "model.quantizer.name=lfq"],
            "model.quantizer.name",
            "lfq",
        ),
        (
            preset("rsqvae-audio"),
            ["data.frontend.kind=mel", "data.frontend.mels=40"],
            "data.frontend.mels",
            40,
        ),
    ],
    ids=["decay", "restart", "random", "kmeans", "stochastic", "external", "mel"],
)
def test_another_kind_brings_its_own_keys(config, settings, key, value):
    changed = override(config, settings)
    assert flatten(to_dict(changed))[key] == value
    assert from_dict(to_dict(changed)) == changed
    with pytest.raises(InputError, match="does not exist"):
        override(config, settings[1:])


def test_naming_the_kind_that_is_there_keeps_its_values():
    changed = override(VQVAE, ["model.quantizer.decay=0.9", "model.quantizer.kind=deterministic"])
    assert changed.model.quantizer.decay == 0.9


def test_the_old_kinds_keys_are_gone():
    with pytest.raises(InputError, match=r"model\.quantizer has no 'decay'"):
        override(preset("vqvae"), ["model.quantizer.kind=stochastic", "model.quantizer.decay=0.9"])


# ------------------------------------------------------------------------------ what cannot be used


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "train.stepz=1",
            "key 'train.stepz' does not exist: train has no 'stepz'; did you mean 'steps'?",
        ),
        ("modle.axes=1", "the config has no 'modle'; did you mean 'model'?"),
        ("model.levels.0.codebok_size=4", "did you mean 'codebook_size'?"),
        ("data.qqqqq=1", "expected one of: .*column.*crop.*workers"),
        ("train.lr.x=1", "train.lr is a single value"),
        ("model.levels.1.dim=3", "model.levels has entries 0 to 0, not '1'"),
        ("model.levels.--1.dim=3", "model.levels has entries 0 to 0, not '--1'"),
        ("model.levels.x.dim=3", "model.levels has entries 0 to 0, not 'x'"),
        ("train.lr", "setting 'train.lr' is not of the form key=value"),
        ("=3", "key '' does not exist"),
        ("train.lr=[1", r"train\.lr='\[1' is not a readable value"),
    ],
)
def test_a_wrong_key_is_named_with_the_nearest_right_one(setting, message):
    with pytest.raises(InputError, match=message):
        override(SQVAE, [setting])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.steps=many", ['train.steps="many"', "integer"]),
        ("train.steps=1.5", ["train.steps=1.5", "integer"]),
        ("train.steps=0", ["train.steps=0", "greater than or equal to 1"]),
        ("train.steps=null", ["train.steps=null", "integer"]),
        ("train.lr=fast", ['train.lr="fast"', "number"]),
        ("train.lr=-1", ["train.lr=-1", "greater than 0"]),
        ("train.lr=.nan", ["train.lr=NaN", "finite"]),
        ("train.weight_ema=1", ["train.weight_ema=1", "less than 1"]),
        ("train.compile=maybe", ['train.compile="maybe"', "boolean"]),
        ("train.schedule=cosin", ["cosin", "'cosine', 'constant' or 'plateau'"]),
        (
            "phases.pretrain_fraction=0.6",
            ["phases.pretrain_fraction=0.6", "less than or equal to 0.5"],
        ),
        ("phases.nearest_fraction=1", ["phases.nearest_fraction=1", "less than 1"]),
        ("train.seed=-1", ["train.seed=-1", "greater than or equal to 0"]),
        ("data.seed=-1", ["data.seed=-1", "greater than or equal to 0"]),
        ("data.size=1", ["data.size=1", "greater than or equal to 2"]),
        ("data.crop=middle", ["middle", "'center' or 'random'"]),
        ("model=5", ["model=5"]),
        ("model.levels=[]", ["model.levels=[]", "at least 1"]),
        (
            "model.levels.0.codebook_size=1",
            ["model.levels.0.codebook_size=1", "greater than or equal to 2"],
        ),
        ("model.quantizer.kind=emma", ["model.quantizer", "emma", "'stochastic', 'deterministic'"]),
        (
            "model.quantizer.init.sharpness=0",
            ["model.quantizer.init.sharpness=0", "greater than 0"],
        ),
        ("model.net.widths=[8,x]", ["model.net.widths.1", '"x"', "integer"]),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(setting, words):
    with pytest.raises(InputError) as refused:
        override(SQVAE, [setting])
    assert all(word in str(refused.value) for word in words), str(refused.value)
    assert "\n" not in str(refused.value)


CONTRADICTIONS = {
    "phases that leave no step": (
        SQVAE,
        ["phases.pretrain_fraction=0.3", "phases.nearest_fraction=0.7"],
        ["phases: pretrain_fraction=0.3", "nearest_fraction=0.7", "less than 1 together"],
    ),
    "plateau with warmup": (
        SQVAE,
        ["train.schedule=plateau", "train.warmup=10"],
        ["train: schedule=plateau", "which is 10", "warmup=0"],
    ),
    "nats with mean squared errors": (
        SQVAE,
        ["model.likelihood=mse"],
        ["likelihood=mse", "quantizer.kind=deterministic"],
    ),
    "spectra of images": (
        SQVAE,
        ["model.spectral.weight=1"],
        ["spectral.weight=1", "axes=2", "channels=3", "expected weight=0"],
    ),
    "pretraining for codebooks from nothing": (
        VQVAE,
        ["phases.pretrain_fraction=0.1"],
        ["phases.pretrain_fraction=0.1", "init.kind=random", "init.kind=kmeans"],
    ),
    "nearest codes in place of nearest codes": (
        VQVAE,
        ["phases.nearest_fraction=0.5"],
        ["phases.nearest_fraction=0.5", "kind=deterministic", "phases.nearest_fraction=0"],
    ),
    "accumulated batches that move codes": (
        VQVAE,
        ["model.quantizer.kind=external", "model.quantizer.name=rotation", "train.accumulate=2"],
        ["train.accumulate=2", "model.quantizer.name=rotation", "train.accumulate=1"],
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_settings_that_contradict_each_other_are_both_named(case):
    config, settings, words = CONTRADICTIONS[case]
    with pytest.raises(InputError) as refused:
        check_together(override(config, settings))
    assert all(word in str(refused.value) for word in words), str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_contradicts_itself(name):
    check_together(preset(name))


@pytest.mark.parametrize(("coarse", "fine"), [(4, 8), (4, 4), (6, 4)])
def test_strides_that_are_not_nested_are_named(coarse, fine):
    with pytest.raises(InputError, match=rf"model\.levels: strides .* but {fine} follows {coarse}"):
        override(SQVAE2, [f"model.levels.0.stride={coarse}", f"model.levels.1.stride={fine}"])


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"modle": {}}, "modle"),
        ({"model": {"levels": [{"strid": 4}]}}, r"model\.levels\.0\.strid"),
        ({"train": 3}, "train=3"),
    ],
)
def test_plain_values_that_are_no_config_are_named(tree, message):
    with pytest.raises(InputError, match=message):
        from_dict(tree)


def test_an_unknown_preset_is_named():
    with pytest.raises(InputError, match="preset 'sqvea' does not exist; did you mean 'sqvae'"):
        preset("sqvea")


# ------------------------------------------------------------------------------ difference


@pytest.mark.parametrize("name", PRESETS)
def test_equal_configs_do_not_differ(name):
    assert difference(preset(name), from_dict(to_dict(preset(name)))) is None


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.lr=0.5", "train.lr is 0.001 there and 0.5 here"),
        ("data.flip=true", "data.flip is False there and True here"),
        ("model.levels.0.layers=2", "model.levels.0.layers is 1 there and 2 here"),
        ("train.epochs=3", "train.epochs is None there and 3.0 here"),
        ("data.source=x", "data.source is photos there and x here"),
    ],
)
def test_a_difference_is_named_with_both_values(setting, said):
    assert difference(SQVAE, override(SQVAE, [setting])) == said


def test_no_two_presets_are_equal():
    names = list(PRESETS)
    assert [
        (a, b)
        for i, a in enumerate(names)
        for b in names[i + 1 :]
        if difference(preset(a), preset(b)) is None
    ] == []


# ------------------------------------------------------------------------------ values and fields


TOTAL = 8


@pytest.mark.parametrize(("step", "expected"), [(0, 2.0), (2, 2**0.5), (4, 1.0), (8, 0.5)])
def test_temperature_falls_exponentially_over_the_run(step, expected):
    temperature = TemperatureConfig(start=2.0, end=0.5)
    assert temperature.at(step, TOTAL) == pytest.approx(expected)


@pytest.mark.parametrize("total", [8, 1000])
def test_a_temperature_that_decays_by_the_step_knows_no_end(total):
    temperature = TemperatureConfig(start=2.0, end=0.5, decay=0.25)
    assert temperature.at(0, total) == 2.0
    assert temperature.at(4, total) == pytest.approx(2 / math.e)


@pytest.mark.parametrize(
    ("pretrain", "nearest", "steps"), [(0, 0, (0, 8)), (0.25, 0.5, (2, 4)), (0.1, 0.75, (1, 2))]
)
def test_phases_begin_at_their_shares_of_the_run(pretrain, nearest, steps):
    phases = PhaseConfig(pretrain_fraction=pretrain, nearest_fraction=nearest)
    assert (phases.quantize_from(TOTAL), phases.nearest_from(TOTAL)) == steps


@pytest.mark.parametrize(
    ("changes", "steps", "interval"),
    [
        ({}, 7, 5),
        ({"epochs": 2.0}, 20, 5),
        ({"epochs": 0.01}, 1, 5),
        ({"epochs": 2.0, "validate_epochs": 1.0}, 20, 10),
    ],
)
def test_epochs_take_the_place_of_steps(changes, steps, interval):
    train = TrainConfig(steps=7, validate_every=5, batch_size=10, **changes)
    assert (train.total_steps(100), train.validation_interval(100)) == (steps, interval)


def config_classes(kind):
    """The dataclasses that a type annotation leads to, itself included."""
    found = {kind} if dataclasses.is_dataclass(kind) else set()
    inner = typing.get_type_hints(kind).values() if found else typing.get_args(kind)
    return found.union(*(config_classes(k) for k in inner))


FIELDS = sorted(
    (kind.__name__, field.name)
    for kind in config_classes(Config)
    for field in dataclasses.fields(kind)
)


@functools.cache
def names_read():
    """Every name that the package reads as an attribute, not in a comment or a text."""
    sources = [path.read_text() for path in Path(hqvae.__file__).parent.rglob("*.py")]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    return {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def test_all_config_classes_are_looked_at():
    expected = {
        "AudioConfig",
        "Config",
        "ConvConfig",
        "ExternalConfig",
        "GumbelSoftmaxConfig",
        "HQVAEConfig",
        "ImageConfig",
        "KMeansInit",
        "LevelConfig",
        "MelConfig",
        "NearestCodeConfig",
        "PhaseConfig",
        "RandomInit",
        "SpectralConfig",
        "TemperatureConfig",
        "TrainConfig",
        "WaveConfig",
        "WaveConvConfig",
    }
    assert {kind for kind, _ in FIELDS} >= expected


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=".".join)
def test_no_field_that_nobody_reads(kind, name):
    assert name in names_read(), f"{kind}.{name} is never read in src"


@pytest.mark.parametrize("kind", sorted(config_classes(Config), key=lambda kind: kind.__name__))
def test_every_field_says_what_it_is(kind):
    names = {field.name for field in dataclasses.fields(kind)} - {"kind"}
    docs = field_docs(kind)
    assert names <= docs.keys() and all(docs.values())


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=".".join)
def test_every_config_is_frozen_and_knows_its_fields_only(kind, name):
    (found,) = [c for c in config_classes(Config) if c.__name__ == kind]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(found(), name, None)
    with pytest.raises(ValueError, match="nobody_knows_it"):
        found(nobody_knows_it=1)
