"""How fast the product is, measured on the embedded stack against what else could be done. `python -m bench`.

Uses the product from outside and changes nothing in it; no module of the product imports this package.
"""
