"""Zero-shot editing (Song et al., 2023, Algorithm 4): the tasks, a desk for a user's images, and the measurement."""
