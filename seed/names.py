"""Names for advertisers and campaigns: invented brands in the trades that buy retail media. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from numpy.random import Generator

_BRANDS = (
    "Alderbrook", "Amberley", "Ashgrove", "Birch & Finch", "Bluewater", "Bramble Hill", "Brightside", "Café Lindqvist",
    "Cedar Lane", "Clover & Rye", "Copperfield", "Crème Royale", "Driftwood", "Eastmoor", "Elm Street", "Fairhaven",
    "Fern & Fable", "Fjällglimt", "Foxglove", "Glenmoor", "Goldcrest", "Greenway", "Hartwell", "Hazelwood", "Heron Bay",
    "Ivy & Oak", "Juniper", "Kestrel", "Kingsley", "Larkspur", "Lindenhof", "Maple Row", "Marlowe's", "Meadowlark",
    "Millstone", "Müllerhof", "Niña Verde", "Northfield", "Oakridge", "O'Hanlon", "Orchard Row", "Pemberton",
    "Pine & Pepper", "Quillon", "Ravenna", "Redwood", "Rosemont", "Saltmarsh", "Silverleaf", "Stonebridge",
    "Summerfield", "Tamarind", "Thistledown", "Two Rivers", "Valemont", "Westbrook", "Whitby", "Wildflower",
    "Willow Creek", "Yarrow",
)  # fmt: skip

_TRADES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Dairy", ("Greek Yogurt", "Oat Milk", "Aged Cheddar", "Kefir")),
    ("Coffee", ("Cold Brew", "Espresso Pods", "House Blend", "Decaf")),
    ("Snacks", ("Sea Salt Crisps", "Trail Mix", "Protein Bars", "Rice Cakes")),
    ("Beverages", ("Sparkling Water", "Iced Tea", "Electrolyte Mix", "Ginger Beer")),
    ("Bakery", ("Sourdough", "Gluten-Free Bread", "Breakfast Rolls", "Granola")),
    ("Pantry", ("Olive Oil", "Pasta Sauce", "Basmati Rice", "Soup Kits")),
    ("Frozen Foods", ("Wood-Fired Pizza", "Berry Blend", "Dumplings", "Gelato")),
    ("Baby Care", ("Nappies", "Fragrance-Free Wipes", "Organic Purées", "Formula")),
    ("Pet Foods", ("Grain-Free Kibble", "Cat Treats", "Puppy Starter", "Dental Chews")),
    ("Home Care", ("Laundry Pods", "Dish Soap Refill", "Surface Spray", "Bin Liners")),
    ("Beauty", ("Vitamin C Serum", "SPF 50 Lotion", "Shampoo Bar", "Lip Balm")),
    ("Wellness", ("Vitamin D", "Magnesium", "Collagen", "Sleep Tea")),
    ("Garden", ("Potting Mix", "Tomato Seeds", "Patio Lights", "Bird Food")),
    ("Kitchen", ("Air Fryer", "Cast Iron Pan", "Knife Set", "Lunch Boxes")),
    ("Electronics", ("Wireless Earbuds", "Smart Plug", "USB-C Charger", "Action Camera")),
    ("Outdoors", ("Trail Shoes", "Camping Stove", "Insulated Bottle", "Rain Jacket")),
)

_PLACEMENTS = ("Sponsored Products", "Sponsored Brands", "Display Retargeting", "Home Page Banner", "Search Top Slot")
_OCCASIONS = (
    "Always On", "New Launch", "Back to School", "Holiday Gifting", "Spring Refresh", "Summer Savings", "Competitor Keywords",
    "Brand Defence", "Basket Builder", "Loyalty Members", "Weekend Boost", "Clearance",
)  # fmt: skip
_HOUSE_LINES = ("Own Label", "Loyalty Card", "Same-Day Delivery", "App Download")


def advertiser_names(rng: Generator, count: int) -> Iterator[str]:
    """Names such as `Northfield Dairy`. No two alike among the first 960; after that a number tells them apart."""
    pairs = len(_BRANDS) * len(_TRADES)
    order = rng.permutation(pairs)
    for position in range(count):
        round_, index = divmod(position, pairs)
        brand, trade = divmod(int(order[index]), len(_TRADES))
        yield f"{_BRANDS[brand]} {_TRADES[trade][0]}" + (f" {round_ + 1}" if round_ else "")


def campaign_name(rng: Generator, advertiser: str | None) -> str:
    """A name such as `Northfield Dairy | Oat Milk | Sponsored Products | Spring Refresh`, at most 255 characters.

    The product fits the trade the advertiser's name ends in, where it ends in one. Without an advertiser it is a
    campaign of the network itself.
    """
    placement = _PLACEMENTS[rng.integers(len(_PLACEMENTS))]
    occasion = _OCCASIONS[rng.integers(len(_OCCASIONS))]
    if advertiser is None:
        lines: tuple[str, ...] = _HOUSE_LINES
    else:
        known = next((products for trade, products in _TRADES if f" {trade}" in advertiser), None)
        lines = known or _TRADES[rng.integers(len(_TRADES))][1]
    line = lines[rng.integers(len(lines))]
    tail = f" | {line} | {placement} | {occasion}"
    return (advertiser or "House")[: 255 - len(tail)] + tail
