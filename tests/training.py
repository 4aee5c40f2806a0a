"""Small trainings for the tests of train/: data, configs, and what a run left."""

import torch
from safetensors.torch import load_file

from hqvae.overrides import override
from hqvae.presets import preset
from hqvae.train import train

SETTINGS = [
    "model.net.widths=[8]",
    "model.net.blocks=1",
    "data.size=16",
    "train.batch_size=8",
    "train.log_every=2",
    "train.validate_every=4",
    "train.validation_items=8",
    "train.steps=8",
    "train.epochs=null",
    "train.validate_epochs=null",
]
NO_PHASES = ["phases.pretrain_fraction=0", "phases.nearest_fraction=0"]
ROTATION = ["model.quantizer.kind=external", "model.quantizer.name=rotation"]


def level_settings(count):
    """Small codebooks for the first `count` levels."""
    keys = ("codebook_size=8", "dim=4")
    return [f"model.levels.{level}.{key}" for level in range(count) for key in keys]


def tiny(name, image_file, *settings):
    """The config of a preset for eight steps of small everything."""
    small = [
        f"data.source={image_file}",
        *SETTINGS,
        *level_settings(len(preset(name).model.levels)),
    ]
    return override(preset(name), [*small, *settings])


def trained(config, folder, **options):
    """The run that `train` makes on the CPU, in a folder of its own."""
    return train(config, str(folder / "run"), accelerator="cpu", **options)


def weights(run):
    return load_file(str(run.path / "model.safetensors"))


def same(one, other):
    """Whether two dicts of tensors agree to the last bit."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def without_speed(entries):
    return [{k: v for k, v in entry.items() if k != "items_per_second"} for entry in entries]
