"""The named points of the product, and their neighbours."""
