"""Two processes are one process on the concatenated batch.

Loss, gradients, moving averages, restarts and metrics; and the choice of a device.
"""

from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel as DDP

from conftest import build, signals
from hqvae.errors import InputError
from hqvae.metrics import SSIM, AudioQuality, Distortion, Mean, Perceptual, Usage
from hqvae.quantize import Noise
from hqvae.ranks import broadcast, gather, pick_device

SYSTEMS = [
    ("stochastic", "hybrid"),
    ("stochastic", "shared"),
    ("ema", "two"),
    ("ema", "learned prior"),
    ("stochastic", "learned prior"),
    ("restart", "shared"),
    ("restart", "hybrid"),
]
GLOBAL = 8


def step(quantizer, levels, rank, world):
    """One step's gradients and codebook update, then gradients of the other two phases."""
    prior = {"prior": "learned", "rate_weight": 1.0} if levels == "learned prior" else {}
    levels = "residual" if prior else levels
    model = build(quantizer, levels, progressive=0.5, **prior).train()
    share = GLOBAL // world
    first = rank * share
    x = signals(GLOBAL)[first : first + share]
    # In some phases parameters have no gradient.
    wrap = partial(DDP, broadcast_buffers=False, find_unused_parameters=True)
    ddp_model = wrap(model) if world > 1 else model
    out = ddp_model(x, 0.7, Noise(11, samples=first))
    out.loss.backward()
    results = gradients("samples", model)
    for level in model.levels if quantizer == "restart" else ():
        for codebook in level.quantizer.codebooks:
            codebook.counts[::2] = 0.1  # so that there is something to restart
    restarted = model.update_codebooks(out.z_e, out.codes, Noise(12, samples=first))
    usage, mean = Usage(16), Mean()
    usage.add(out.codes[0])
    mean.add(out.distortion)
    results |= {f"buffer {name}": values for name, values in model.named_buffers()}
    results |= {f"weight {name}": values.detach() for name, values in model.named_parameters()}
    ddp_model(x, 0.7, Noise(11, samples=first), quantize=False).loss.backward()
    results |= gradients("pretraining", model)
    model.use_nearest()
    ddp_model(x, 0.7, Noise(11, samples=first)).loss.backward()
    results |= gradients("nearest codes", model)
    return results | {
        "sigma2": out.sigma2,
        "restarted": torch.tensor(restarted),
        "perplexity": torch.tensor(usage.perplexity()),
        "used": torch.tensor(usage.used()),
        "distortion": torch.tensor(mean.value()),
        "loss": out.loss.detach(),
    }


def gradients(phase, model):
    """By name, summed over the phases so far; what has had none is left out."""
    return {
        f"gradient of {name}, {phase}": parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def process(rank, folder, quantizer, levels):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(step(quantizer, levels, rank, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(("quantizer", "levels"), SYSTEMS)
def test_two_processes_are_one(quantizer, levels, tmp_path):
    mp.start_processes(process, (str(tmp_path), quantizer, levels), nprocs=2, start_method="fork")
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    one = step(quantizer, levels, 0, 1)
    assert one.keys() == ranks[0].keys()
    for name, value in one.items():
        if name == "loss":  # latent loss and entropy are means over each process's share
            value_of_two = (ranks[0][name] + ranks[1][name]) / 2
        else:
            assert torch.equal(ranks[0][name], ranks[1][name]), name
            value_of_two = ranks[0][name]
        scale = value.abs().max().clamp(min=1e-3) if value.is_floating_point() else 1
        assert torch.allclose(value / scale, value_of_two / scale, atol=2e-5), name
    if quantizer == "restart":
        assert one["restarted"] > 0
    moved = {name.rsplit(", ", 1)[1] for name in one if name.startswith("gradient")}
    assert moved == {"samples", "pretraining", "nearest codes"}


def copied(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mine = [torch.tensor([1.5, -2.0]) + rank, torch.tensor([3, 4]) + rank, torch.tensor(rank == 0)]
    gathered = gather([f"of {rank}"] * (rank + 1))
    torch.save([*(broadcast(values) for values in mine), gathered], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_every_process_has_the_first_ones_values_and_those_of_all(tmp_path):
    mp.start_processes(copied, (str(tmp_path),), nprocs=2, start_method="fork")
    for rank in (0, 1):
        saved = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        numbers, whole, truth, gathered = saved
        assert numbers.tolist() == [1.5, -2.0] and whole.tolist() == [3, 4]
        assert truth.dtype == torch.bool and truth
        assert gathered == [["of 0"], ["of 1", "of 1"]]
    assert gather("alone") == ["alone"]


class SmallFeatures(torch.nn.Module):
    """Stands for Inception."""

    num_features = 4

    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x, 2)[:, 0].flatten(1)


def metric_values(rank, world):
    """Every metric's values, of this process's share of images and waveforms."""
    share = slice(rank, None, world)
    generator = torch.Generator().manual_seed(0)
    images, images_hat = torch.rand(2, 5, 3, 16, 16, generator=generator) * 2 - 1
    waves, waves_hat = torch.rand(2, 5, 1, 3000, generator=generator) * 2 - 1
    of_images = (Distortion(127.5), SSIM(), Perceptual(None, SmallFeatures()))
    for metric in of_images:
        metric.add(images[share], images_hat[share])
    audio = AudioQuality(16_000)
    audio.add(waves[share], waves_hat[share])
    unused = SSIM()
    if rank:  # only one process has images that are large enough
        unused.add(images[share], images_hat[share])
    values = [metric.values() for metric in (*of_images, audio, unused)]
    return [{name: torch.tensor(value) for name, value in one.items()} for one in values]


def measured(rank, folder):
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    torch.save(metric_values(rank, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_metrics_of_two_processes_are_those_of_one(tmp_path):
    mp.start_processes(measured, (str(tmp_path),), nprocs=2, start_method="fork")
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    for one, two in zip(metric_values(0, 1)[:-1], ranks[0]):
        assert one and one.keys() == two.keys()
        for name, value in one.items():
            assert torch.allclose(value.double(), two[name].double(), rtol=1e-4), name
    assert ranks[0][-1].keys() == {"ssim"}


def test_a_device_that_does_not_exist_is_refused():
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="accelerator 'cuad' does not exist; did you mean 'cuda'"):
        pick_device("cuad")
