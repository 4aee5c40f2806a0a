"""What `evaluate` found, as plain values and as tables."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hqvae.console import print_table
from hqvae.doctor import Finding
from hqvae.item_codes import print_ids
from hqvae.measure import LayerMeasures, Measures
from hqvae.metrics import IdMeasures
from hqvae.rates import RatePoint, print_rates


@dataclass(frozen=True)
class Report:
    """What `evaluate` found and how: `protocol` names everything the numbers depend on."""

    measures: Measures
    findings: list[Finding]
    protocol: dict[str, Any]
    ids: IdMeasures | None = None
    """Of vectors, whose codes are their IDs."""
    rates: Sequence[RatePoint] = ()
    """Of a model whose prior is learned: error against bits."""

    def entry(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "measures": self.measures.entry(),
            "findings": [asdict(finding) for finding in self.findings],
            "protocol": self.protocol,
            **({} if self.ids is None else {"ids": self.ids.entry()}),
            **({"rates": [point.entry() for point in self.rates]} if self.rates else {}),
        }


_COLUMNS = {
    "rmse": ("RMSE", None),
    "explained_variance": ("explained", 4),
    "own_id": ("own ID", 4),
    "psnr": ("{ratio} dB", 2),
    "ssim": ("SSIM", 4),
    "si_sdr": ("SI-SDR dB", 2),
    "stft_distance": ("STFT distance", 3),
    "mel_distance": ("mel distance", 3),
    "log_mel_rmse": ("log-mel RMSE", 3),
    "lpips": ("LPIPS", 4),
    "rfid": ("rFID", 2),
}


def print_report(report: Report, title: str) -> None:
    """The measures as two tables on standard output."""
    measures = report.measures
    protocol = report.protocol
    cells = _figures(measures, protocol)
    where = f"{protocol['split']} split of {protocol['data']['source']}"
    heading = f"{title}: {measures.items} {protocol['noun']}s, {where}"
    print_table(heading, list(cells), [list(cells.values())])
    rows = [_layer_cells(layer, measures, protocol["ratio"]) for layer in measures.layers]
    print_table("layer by layer", list(rows[0]), [list(row.values()) for row in rows])
    if report.rates:
        print_rates(report.rates, protocol["unit"], protocol["point"])
    if report.ids is not None:
        print_ids(report.ids)
    for finding in report.findings:
        print(f"! {finding.layer} {finding.kind}: {finding.what}")


def _figures(measures: Measures, protocol: Mapping[str, Any]) -> dict[str, str]:
    cells = {}
    for name, (head, digits) in _COLUMNS.items():
        if name in measures.figures:
            value = measures.figures[name]
            places = (2 if value > 2 else 4) if digits is None else digits
            named = f"{head} ({protocol['unit']})" if name == "rmse" else head
            cells[named.format(**protocol)] = f"{value:.{places}f}"
    cells["−ELBO bits/dim"] = f"{measures.bits_per_dim:.3f}"
    if measures.bits_per_second is None:
        cells["−ELBO, nearest code"] = f"{measures.bits_per_dim_deterministic:.3f}"
        cells[f"rate bits/{protocol['point']}"] = f"{measures.bits_per_point:.4f}"
    else:  # audio has enough columns
        cells["rate bits/s"] = f"{measures.bits_per_second:.0f}"
    return cells


def _layer_cells(layer: LayerMeasures, measures: Measures, ratio: str) -> dict[str, str]:
    drop = layer.ablation_drop_db
    certain = layer.s2 == 0  # codes are the nearest ones: no posterior has collapsed here
    explained = measures.explained(layer)
    places = {"stride": str(layer.stride), "codes": str(layer.positions)}
    return {
        "layer": layer.name,
        **(places if explained is None or layer.positions > 1 else {}),
        "K": str(layer.codebook_size),
        "perplexity": f"{layer.perplexity:.1f}",
        "used": f"{layer.used / layer.codebook_size:.0%}",
        "H(P̂) bits": "–" if certain else f"{layer.entropy_bits:.2f}",
        "s²": "–" if certain else f"{layer.s2:.3g}",
        **({} if explained is None else {"explained": f"{explained:.4f}"}),
        f"{ratio} so far": f"{layer.psnr_cumulative:.2f}",
        "if shuffled": f"−{drop:.2f}" if drop > 0 else f"{-drop:+.2f}",
    }
