"""Two processes are one process on the concatenated batch.

Loss, gradients, moving averages, restarts and metrics; and the choice of a device.
"""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import build, signals
from torch.nn.parallel import DistributedDataParallel

from hqvae.errors import InputError
from hqvae.metrics import SSIM, AudioQuality, Distortion, Mean, Perceptual, Usage
from hqvae.quantize import Noise
from hqvae.ranks import broadcast, pick_device

SYSTEMS = [
    ("stochastic", "hybrid"),
    ("stochastic", "shared"),
    ("ema", "two"),
    ("restart", "shared"),
    ("restart", "hybrid"),
]
GLOBAL = 8


def step(quantizer, levels, rank, world):
    """One step's gradients and codebook update on this process's share of the batch."""
    model = build(quantizer, levels, progressive=0.5).train()
    share = GLOBAL // world
    x = signals(GLOBAL)[rank * share : (rank + 1) * share]
    wrapped = DistributedDataParallel(model, broadcast_buffers=False) if world > 1 else model
    out = wrapped(x, 0.7, Noise(11, samples=rank * share))
    out.loss.backward()
    for layer in model.layers if quantizer == "restart" else ():
        layer.quantizer.counts[::2] = 0.1  # so that there is something to restart
    restarted = model.update(out.z_e, out.codes, Noise(12))
    usage, mean = Usage(16), Mean()
    usage.add(out.codes[0])
    mean.add(out.distortion)
    # What `quantized=False` leaves out still has gradients: DDP would wait for them.
    wrapped(x, 0.7, Noise(11, samples=rank * share), quantized=False).loss.backward()
    results = {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
    results |= {f"buffer {name}": b for name, b in model.named_buffers()}
    results |= {
        "sigma2": out.sigma2,
        "restarted": torch.tensor(restarted),
        "perplexity": torch.tensor(usage.perplexity()),
    }
    return results | {
        "used": torch.tensor(usage.used()),
        "distortion": torch.tensor(mean.value()),
        "loss": out.loss.detach(),
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
        if name == "loss":  # fit and entropy are means over each process's share
            value_of_two = (ranks[0][name] + ranks[1][name]) / 2
        else:
            assert torch.equal(ranks[0][name], ranks[1][name]), name
            value_of_two = ranks[0][name]
        scale = value.abs().max().clamp(min=1e-3) if value.is_floating_point() else 1
        assert torch.allclose(value / scale, value_of_two / scale, atol=2e-5), name
    if quantizer == "restart":
        assert one["restarted"] > 0


def copied(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mine = [torch.tensor([1.5, -2.0]) + rank, torch.tensor([3, 4]) + rank, torch.tensor(rank == 0)]
    torch.save([broadcast(values) for values in mine], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_every_process_has_the_first_ones_values(tmp_path):
    mp.start_processes(copied, (str(tmp_path),), nprocs=2, start_method="fork")
    for rank in (0, 1):
        numbers, whole, truth = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert (
            numbers.tolist() == [1.5, -2.0]
            and whole.tolist() == [3, 4]
            and truth.dtype == torch.bool
            and truth
        )


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
