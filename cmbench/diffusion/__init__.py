"""Sigma grids, preconditioning and the ODE solvers of diffusion models."""
