"""From workdirs to figures and claims; nothing here trains or imports JAX."""
