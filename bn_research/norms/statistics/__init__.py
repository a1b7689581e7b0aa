"""The engine of statistics: moments, covariances, devices, memory."""
