"""The inputs of a layer: their moments, and coordinates that whiten them."""
