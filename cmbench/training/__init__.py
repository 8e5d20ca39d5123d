"""The training loop: EMA, autocast, resume, divergence."""
