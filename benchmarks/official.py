"""Training throughput of `sqvae` against the single-layer code of the paper's authors.

    git clone https://github.com/sony/sqvae
    python benchmarks/official.py sqvae [--batch 128] [--rounds 5]

The same small CIFAR-10 net, K = 512, d = 64, random images; theirs in float32 as published, ours in
bfloat16 and in float32, interleaved. Their code names a GPU in places; on a machine without one it
is given the CPU instead. They need scipy.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace as Settings

import torch
from torch.overrides import TorchFunctionMode

from hqvae.model import HQVAE
from hqvae.presets import preset
from hqvae.quantize import Noise


class OnCpu(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        return function(*args, **kwargs)


def theirs(checkout: str, batch: int) -> Callable[[], None]:
    sys.path.insert(0, str(Path(checkout) / "vision"))
    from model import GaussianSQVAE

    settings = Settings(
        dataset=Settings(name="CIFAR10", dim_x=3072),
        model=Settings(log_param_q_init=2.995732273553991, param_var_q="gaussian_1"),
        network=Settings(name="resnet", num_rb=2),
        quantization=Settings(size_dict=512, dim_dict=64, temperature=Settings(init=1.0)),
    )
    torch.manual_seed(0)
    model, x = (
        GaussianSQVAE(settings, Settings(bn=True, var_q=False, arelbo=True)),
        torch.rand(batch, 3, 32, 32),
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step() -> None:
        with OnCpu():
            loss = model(x, flg_train=True, flg_quant_det=False)[2]["all"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def ours(batch: int, bf16: bool) -> Callable[[], None]:
    torch.manual_seed(0)
    model, x = HQVAE(preset("sqvae").model), torch.rand(batch, 3, 32, 32) * 2 - 1
    model.init_scale(x)
    model.init_codebooks(x, Noise(1))
    model, x = (
        model.to(memory_format=torch.channels_last),
        x.contiguous(memory_format=torch.channels_last),
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(x, 0.7, Noise(2)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/official.json"))
    arguments = parser.parse_args()
    steps = {
        "sony/sqvae, float32": theirs(arguments.checkout, arguments.batch),
        "hqvae, float32": ours(arguments.batch, False),
        "hqvae, bf16": ours(arguments.batch, True),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.rounds + 1):
        for name, step in steps.items():
            for _ in range(5):
                start = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - start)
    speeds = {
        name: arguments.batch / statistics.median(seconds[5:]) for name, seconds in times.items()
    }
    for name, speed in speeds.items():
        print(f"{name:22s} {speed:8.0f} images/s {speed / speeds['sony/sqvae, float32']:6.2f}×")
    arguments.out.write_text(
        json.dumps(
            {
                "batch": arguments.batch,
                "threads": torch.get_num_threads(),
                "images_per_second": speeds,
            },
            indent=2,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
