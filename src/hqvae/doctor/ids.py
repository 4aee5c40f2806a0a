"""The diagnosis of codes as IDs, in words: who shares one, and what prefixes tell."""

import math

from hqvae.metrics import IdMeasures, PrefixMeasures

OWN_ID = 0.97  # share of items with an ID of their own, below which something is to be done
FEW = 100  # items, of which nothing is said
ALONE = 1.5  # items of a prefix, below which it is of one item
UNEVEN = 0.6  # Gini coefficient of the first layer above which a few codes take most items


def diagnose_ids(ids: IdMeasures) -> list[str]:
    """Paragraphs, one thought each."""
    return [_collisions(ids), *_uneven(ids), *_prefixes(ids), *_fine_at_once(ids)]


def _collisions(ids: IdMeasures) -> str:
    whole = ids.collisions
    sentence = f"{whole.alone:.1%} of {whole.items:,} items have an ID of their own"
    aside = ids.without_duplicates
    if aside is not None and aside.alone > whole.alone:
        sentence += f" ({aside.alone:.1%} where items with equal vectors count as one)"
    sentence += f"; the largest collision is of {whole.largest:,}."
    if _own(ids) < OWN_ID:
        layers = len(ids.layers)
        sentence += (
            " TRY: narrower codes (a smaller model.levels.0.dim), which tell more items apart and "
            f"explain less, or one layer more (model.levels.0.layers={layers + 1}). "
            "hqvae ids makes the rest unique, by one more token or by the nearest free ID."
        )
    return sentence


def _own(ids: IdMeasures) -> float:
    """Share of items with an ID of their own, those of equal vectors as one where that is known."""
    return (ids.without_duplicates or ids.collisions).alone


def _uneven(ids: IdMeasures) -> list[str]:
    first = ids.layers[0]
    if first.gini <= UNEVEN:
        return []
    return [
        f"the first layer is used unevenly (Gini {first.gini:.2f}, perplexity "
        f"{first.perplexity:.0f} of {first.codebook_size}): a generator learns it badly. "
        "TRY: a lower model.levels.0.codebook_size, or look for items that are nearly equal."
    ]


def _fine_at_once(ids: IdMeasures) -> list[str]:
    """Where the first codes tell items apart already, the others are of one item each."""
    layers = len(ids.layers)
    fine = [prefix for prefix in ids.prefixes[:-2] if prefix.mean_items < ALONE]
    if not fine or _own(ids) < OWN_ID or ids.collisions.items < FEW:
        return []
    # So many that all codes but the last have about as many combinations as there are items.
    codes = 2 ** math.ceil(math.log2(ids.collisions.items) / (layers - 1))
    if codes >= ids.layers[0].codebook_size:
        return []
    first = fine[0].layers
    return [
        f"the first {first} of {layers} codes have {fine[0].mean_items:.2f} items each: the others "
        "are of hardly more than one item, and a generator cannot learn them from other items. "
        f"TRY: model.levels.0.codebook_size={codes}, which spreads what items share over all "
        "codes; more items then share an ID."
    ]


def _prefixes(ids: IdMeasures) -> list[str]:
    """What items of one prefix have in common, layer by layer."""
    return [sentence for prefix in ids.prefixes[:-1] if (sentence := _prefix(prefix))]


def _prefix(prefix: PrefixMeasures) -> str:
    codes = f"the first {prefix.layers} code{'s' * (prefix.layers > 1)}"
    found = []
    if prefix.purity is not None and prefix.purity.shared is not None:
        purity = prefix.purity
        found.append(
            f"{purity.shared:.0%} of those who share them have their commonest label "
            f"({purity.shared_chance:.0%} by chance)"
        )
    if prefix.neighbours is not None:
        near = prefix.neighbours
        found.append(
            f"{near.recall:.1%} of an item's 10 nearest have its own ({near.chance:.1%} by chance)"
        )
    return f"{codes}: {'; '.join(found)}." if found else ""
