"""Stochastic quantization and nearest codes against the textbook and vector-quantize-pytorch.

    python benchmarks/quantizer.py [--sizes 256,512,1024,4096,16384,65536] [--rounds 5]
        [--device cpu] [--out benchmarks/quantizer]

Forward and backward in training, D = 64, N = 8192 rows (4096 from K = 16384 on), float32. The
contenders are interleaved, round after round. Medians are reported, and the most memory each takes
beyond its inputs, measured in a process of its own. The textbook is left out where its arrays would
take more than 8 GB. Writes OUT.json and OUT.png.

On CUDA the textbook is compiled, and the time of the seven matrix products alone is measured too.
"""

import argparse
import gc
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
from torch import Tensor
from vector_quantize_pytorch import ResidualVQ, VectorQuantize

from hqvae.quantize import NearestCodeConfig, Noise, ResidualQuantizer, kernels
from hqvae.quantize.kernels import reference

matplotlib.use("Agg")
from matplotlib import pyplot as plt

D = 64
LAYERS = 4
Step = Callable[[], None]


def rows_of(codes: int) -> int:
    return 4096 if codes >= 16384 else 8192


def inputs(codes: int, device: str) -> tuple[Tensor, Tensor]:
    """z that requires a gradient, and the gradient of what comes of it."""
    torch.manual_seed(0)
    z = torch.randn(rows_of(codes), D, device=device, requires_grad=True)
    return z, torch.randn_like(z)


def stochastic(quantize: Callable, codes: int, device: str, layers: int = 1) -> Step:
    z, gradient = inputs(codes, device)
    codebooks = [torch.randn(codes, D, device=device, requires_grad=True) for _ in range(layers)]
    log_s2 = torch.tensor(0.7, device=device, requires_grad=True)
    temperature = torch.tensor(0.6)
    seed = torch.tensor(5)

    def step() -> None:
        residual = z
        out = torch.zeros_like(z)
        entropy = 0
        for codebook in codebooks:
            z_l, entropy_l, _ = quantize(residual, codebook, log_s2, temperature, seed)
            out = out + z_l
            residual = residual - z_l
            entropy = entropy + entropy_l.sum()
        ((out * gradient).sum() - entropy).backward()

    return step


def deterministic(quantizer: torch.nn.Module, codes: int, device: str) -> Step:
    z, gradient = inputs(codes, device)
    quantizer = quantizer.to(device).train()

    def step() -> None:
        out, _, loss = quantizer(z.unsqueeze(0))
        ((out[0] * gradient).sum() + loss.sum()).backward()

    return step


def averages(codes: int, device: str) -> Step:
    """Our deterministic quantizer: straight-through gradient, commitment, moving averages."""
    z, gradient = inputs(codes, device)
    quantizer = ResidualQuantizer(D, codes, config=NearestCodeConfig()).to(device).train()

    def step() -> None:
        out = quantizer(z)
        ((out.z * gradient).sum() + out.latent_loss.sum()).backward()
        quantizer.update(z.detach(), out.codes, Noise(3))

    return step


def products(codes: int, device: str) -> Step:
    z, gradient = (t.detach() for t in inputs(codes, device))
    codebook = torch.randn(codes, D, device=device)
    weights = torch.empty(len(z), codes, device=device)

    def step() -> None:
        for _ in range(3):
            torch.mm(z, codebook.T, out=weights)  # scores, scores again, ∂L/∂y
        for _ in range(2):
            weights @ codebook  # the sample, the gradient of z
            weights.T @ gradient  # the two halves of the codebook's

    return step


def contenders(device: str) -> dict[str, Callable[[int], Step]]:
    textbook = torch.compile(reference.quantize) if device == "cuda" else reference.quantize

    def vq(k: int) -> torch.nn.Module:
        return VectorQuantize(dim=D, codebook_size=k)

    def residual_vq(k: int) -> torch.nn.Module:
        return ResidualVQ(dim=D, codebook_size=k, num_quantizers=LAYERS)

    chosen: dict[str, Callable[[int], Step]] = {
        "hqvae": lambda k: stochastic(kernels.quantize, k, device),
        "textbook": lambda k: stochastic(textbook, k, device),
        "hqvae, moving averages": lambda k: averages(k, device),
        "VectorQuantize": lambda k: deterministic(vq(k), k, device),
        f"hqvae, {LAYERS} layers": lambda k: stochastic(kernels.quantize, k, device, LAYERS),
        f"ResidualVQ, {LAYERS} layers": lambda k: deterministic(residual_vq(k), k, device),
    }
    if device == "cuda":
        chosen["matrix products"] = lambda k: products(k, device)
    return chosen


def affordable(name: str, codes: int) -> bool:
    return name != "textbook" or 12 * 4 * rows_of(codes) * codes < 8e9


def timed(step: Step, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(name: str, codes: int, device: str) -> int:
    """The most memory of one step beyond what was there before it.

    Linux counts a process's peak, CUDA its own.
    """
    make = contenders(device)[name]
    make(256)()  # compilers take memory once
    step = make(codes)
    gc.collect()
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def measure(codes: int, rounds: int, device: str) -> dict[str, dict[str, float]]:
    names = [name for name in contenders(device) if affordable(name, codes)]
    steps = {name: contenders(device)[name](codes) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(timed(step, device))
    results = {name: {"ms": 1e3 * statistics.median(seconds)} for name, seconds in times.items()}
    del steps
    for name in names:
        command = [sys.executable, __file__, "--device", device, "--peak", name, str(codes)]
        done = subprocess.run(command, capture_output=True, text=True)
        results[name]["MB"] = (
            int(done.stdout) / 1e6 if done.returncode == 0 and done.stdout.strip() else float("nan")
        )
    return results


def draw(results: dict[int, dict[str, dict[str, float]]], path: Path) -> None:
    titles = {"ms": "time, forward and backward (ms)", "MB": "peak memory beyond the inputs (MB)"}
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for panel, (unit, title) in zip(panels, titles.items()):
        for name in dict.fromkeys(name for row in results.values() for name in row):
            points = [(codes, row[name][unit]) for codes, row in results.items() if name in row]
            panel.loglog(*zip(*points), marker="o", label=name)
        panel.set(xlabel="codebook size K", title=title)
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.savefig(path, dpi=110)


def print_rows(codes: int, row: dict[str, dict[str, float]]) -> None:
    print(f"K = {codes}, N = {rows_of(codes)}")
    for name, figures in row.items():
        ours = row[f"hqvae, {LAYERS} layers" if "layers" in name else "hqvae"]
        ms, megabytes = figures["ms"], figures["MB"]
        print(
            f"    {name:24s} {ms:10.1f} ms {ms / ours['ms']:6.2f}×"
            f"   {megabytes:9.1f} MB {megabytes / ours['MB']:6.2f}×"
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="256,512,1024,4096,16384,65536")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/quantizer"))
    parser.add_argument("--keep", action="store_true", help="add to the sizes that OUT.json has")
    parser.add_argument(
        "--peak", nargs=2, metavar=("NAME", "K"), help="print one contender's memory, and no more"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.peak:
        print(peak_bytes(arguments.peak[0], int(arguments.peak[1]), arguments.device))
        return
    results: dict[int, dict[str, dict[str, float]]] = {}
    if arguments.keep:
        kept = json.loads(arguments.out.with_suffix(".json").read_text())["by K"]
        results = {int(codes): row for codes, row in kept.items()}
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    for codes in map(int, arguments.sizes.split(",")):
        results[codes] = measure(codes, arguments.rounds, arguments.device)
        print_rows(codes, results[codes])
        report = {"machine": machine, "D": D, "by K": results}
        arguments.out.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    draw(results, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
