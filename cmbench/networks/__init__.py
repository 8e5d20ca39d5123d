"""Networks that samplers and objectives evaluate."""
