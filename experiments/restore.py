"""Lay a kept report's results where `hqvae compare --out OUT` finds them.

So only what is new is trained. Systems may be named; all where none is:

python experiments/restore.py experiments/results/depth/report.json runs/depth "RQ-VAE, restart" …

Results of another config than the spec's are refused by `hqvae compare`, not here. Training curves
are not in a report.
"""

import json
import sys
from pathlib import Path

from hqvae.compare.jobs import ComparisonDir


def main(report: Path, out: str, systems: list[str]) -> None:
    kept = json.loads(report.read_text())
    for result in kept["results"]:
        if not systems or result["system"] in systems:
            ComparisonDir(out).save_result(kept["split"], result)
            print(f"{result['case']} {result['system']}, seed {result['seed']}".strip())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
