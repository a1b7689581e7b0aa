"""The population axis: what is remembered of batches for inference."""
