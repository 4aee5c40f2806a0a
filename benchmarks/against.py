"""Two commits side by side: the same benchmark of both, interleaved round after round.

    git worktree add ../before b560927
    python benchmarks/against.py ../before [--script training.py] [--rounds 5]

Each round runs the other checkout's script over the other checkout's source, then this one's, in
processes of their own. Printed per variant that both have: the ratio of the medians of images per
second, this one's to the other's.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]


def speeds(checkout: Path, script: str, steps: int) -> dict[str, float]:
    """Images per second of every variant, in one round."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "speeds.json"
        words = [sys.executable, str(checkout / "benchmarks" / script)]
        options = ["--rounds", "1", "--steps", str(steps), "--out", str(out)]
        environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
        subprocess.run([*words, *options], check=True, env=environment, stdout=subprocess.DEVNULL)
        return json.loads(out.read_text())["images_per_second"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--script", default="training.py")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="steps per variant and round")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    before: dict[str, list[float]] = {}
    after: dict[str, list[float]] = {}
    for number in range(arguments.rounds):
        for checkout, found in ((arguments.checkout.resolve(), before), (HERE, after)):
            for name, speed in speeds(checkout, arguments.script, arguments.steps).items():
                found.setdefault(name, []).append(speed)
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
    ratios = {
        name: statistics.median(after[name]) / statistics.median(before[name])
        for name in after
        if name in before
    }
    for name, ratio in ratios.items():
        print(f"{name:62s} {ratio:6.3f} × before")
    if arguments.out is not None:
        figures = {"ratios": ratios, "before": before, "after": after}
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
