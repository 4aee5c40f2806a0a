"""A run's report, validation curve, config and pictures, small enough to commit.

python experiments/summarise.py RUN experiments/calibration/sqvae
"""

import json
import shutil
import sys
from pathlib import Path


def main(run: Path, prefix: Path) -> None:
    prefix.parent.mkdir(parents=True, exist_ok=True)
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    curve = [
        {
            "step": entry["step"],
            "psnr": round(entry["psnr"], 3),
            "bits_per_dim": round(entry["bits_per_dim"], 4),
            "perplexity": [round(layer["perplexity"], 1) for layer in entry["layers"]],
            "s2": [layer["s2"] for layer in entry["layers"]],
        }
        for entry in entries
        if entry["kind"] == "validation"
    ]
    summary = {"validation": curve, "config": json.loads((run / "config.json").read_text())}
    prefix.with_name(prefix.name + ".log.json").write_text(json.dumps(summary, indent=1) + "\n")
    for name, target in {
        "report.json": "report.json",
        "training-layers.png": "layers.png",
        "reconstructions.png": "reconstructions.png",
    }.items():
        shutil.copy(run / "report" / name, prefix.with_name(f"{prefix.name}.{target}"))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
