"""Give the kept reports today's key names; no number changes.

They were measured with the code of commit b560927 or earlier, whose configs and measures had other
names. An old key that means nothing today goes into `retired`, beside the config it stood in.
Reports that have today's names stay as they are.

python experiments/rename_keys.py
"""

import json
import re
from pathlib import Path
from typing import Any

EXPERIMENTS = Path(__file__).resolve().parent
FOLDERS = ("results", "calibration", "speech")
MEASURES = {
    "images": "items",
    "psnr_after": "psnr_cumulative",
    "rmse_after": "rmse_cumulative",
    "psnr_loss": "ablation_drop_db",
    "bits_per_dim_nearest": "bits_per_dim_deterministic",
    "bits_per_pixel": "bits_per_point",
    "shuffled_images": "shuffled_items",
    "images_per_second": "items_per_second",
}
# Of a config, by dotted keys.
MOVED = {
    "train.unquantized": "phases.pretrain_fraction",
    "train.hard": "phases.nearest_fraction",
    "train.temperature.start": "phases.temperature.start",
    "train.temperature.end": "phases.temperature.end",
    "train.lr_log_s2": "phases.lr_log_s2",
    "train.ema": "train.weight_ema",
    "train.validation_images": "train.validation_items",
    "model.search": "model.beam_size",
    "model.quantizer.start.kind": "model.quantizer.init.kind",
    "model.quantizer.start.sharpness": "model.quantizer.init.sharpness",
    "model.quantizer.start.s2": "model.quantizer.init.s2",
    "contents": "fingerprints",
}
RETIRED = (
    "train.patience",  # 3 then is 2 now; of a schedule that no kept report uses
    "train.nearest",  # an early form of the nearest-code phase
    "train.hard_rise",  # the rate rose anew in that phase
    "train.temperature.over",
    "model.quantizer.start.jitter",
    "model.quantizer.start.kmeans",  # rounds; 0 left codes on random features
    "model.net.hidden",
    "model.net.activation",  # these three are `model.net.kind` now
    "model.net.norm",
    "model.net.zero_start",
)
QUANTIZERS = {"ema": "deterministic", "other": "external"}
INITS = {"normal": "random", "data": "kmeans"}


def rename(tree: Any) -> Any:
    """A report, or a part of one, with today's names."""
    if isinstance(tree, list):
        return [rename(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    renamed: dict[str, Any] = {}
    for key, value in tree.items():
        if key == "config":
            renamed |= rename_config(value)
        elif key == "data" and isinstance(value, dict):
            renamed[key] = rename_data(value)
        else:
            renamed[MEASURES.get(key, key)] = rename(value)
    return renamed


def rename_config(config: dict[str, Any]) -> dict[str, Any]:
    """`config` with today's names, and `retired`; a config that has them comes back alone."""
    if "phases" in config:
        return {"config": config}
    old = json.loads(json.dumps(config))
    retired = {key: take(old, key) for key in RETIRED if has(old, key)}
    moved = {new: take(old, key) for key, new in MOVED.items() if has(old, key)}
    take(old, "train.temperature")
    take(old, "model.quantizer.start")
    model, train = old.pop("model"), old.pop("train")
    new = {"model": model, "data": rename_data(old.pop("data")), "phases": {}, "train": train}
    new |= old
    for key, value in moved.items():
        put(new, key, value)
    quantizer = model["quantizer"]
    # Deterministic systems trained in the unit of their papers then.
    model["likelihood"] = "gaussian" if quantizer["kind"] == "stochastic" else "mse"
    quantizer["kind"] = QUANTIZERS.get(quantizer["kind"], quantizer["kind"])
    if "init" in quantizer:
        quantizer["init"]["kind"] = INITS[quantizer["init"]["kind"]]
    model["net"]["kind"] = "wave" if retired.get("model.net.activation") == "elu" else "conv"
    for level in model["levels"]:
        level["shared_codebook"] = level.pop("shared")
    return {"config": new, "retired": retired}


def rename_data(data: dict[str, Any]) -> dict[str, Any]:
    """Settings of the data, of a config or a protocol, with today's names."""
    names = {"front": "frontend"}
    renamed = {names.get(key, key): value for key, value in data.items()}
    return {**renamed, "kind": "audio"} if renamed.get("kind") == "sounds" else renamed


def has(tree: dict[str, Any], key: str) -> bool:
    """Whether a tree has a dotted key."""
    *parents, last = key.split(".")
    for part in parents:
        tree = tree.get(part, {})
    return last in tree


def take(tree: dict[str, Any], key: str) -> Any:
    """Remove a dotted key and return its value; None where it is missing."""
    *parents, last = key.split(".")
    for part in parents:
        tree = tree.get(part, {})
    return tree.pop(last, None)


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, with the branches that lead to it."""
    *parents, last = key.split(".")
    for part in parents:
        tree = tree.setdefault(part, {})
    tree[last] = value


def kept_reports() -> list[Path]:
    """All JSON files that experiments have left here."""
    return sorted(path for folder in FOLDERS for path in (EXPERIMENTS / folder).rglob("*.json"))


def renamed_text(text: str) -> str:
    """A JSON file's text with today's names, indented as it was."""
    first = re.search(r"\n( *)", text)
    return json.dumps(rename(json.loads(text)), indent=len(first[1]) if first else 1) + "\n"


def main() -> None:
    for path in kept_reports():
        text = path.read_text()
        renamed = renamed_text(text)
        if renamed != text:
            path.write_text(renamed)
            print(path.relative_to(EXPERIMENTS.parent))


if __name__ == "__main__":
    main()
