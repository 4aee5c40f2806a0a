"""Lay a kept report's results where `hqvae compare --out OUT` finds them, so that only what is new is trained.

python experiments/restore.py experiments/results/depth/report.json runs/depth "RQ-VAE, restart" …   # systems; all where none is named

Results of another config than the spec's are refused by `hqvae compare`, not here. Training curves are not in a report.
"""

import json
import sys
from pathlib import Path

from hqvae.compare.spec import plain


def main(report: Path, out: Path, systems: list[str]) -> None:
    whole = json.loads(report.read_text())
    for result in whole["results"]:
        if systems and result["system"] not in systems:
            continue
        name = "-".join(part for part in (plain(result["case"]), plain(result["system"]), f"seed{result['seed']}") if part)
        path = out / "results" / f"{name}.{whole['split']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
