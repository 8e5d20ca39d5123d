"""The range of noise levels that samplers and training share."""

from dataclasses import dataclass

from cmbench.errors import UsageError


@dataclass(frozen=True)
class NoiseRange:
    """The noise levels of the EDM formulation (Karras et al., 2022, Table 1), for data in [-1, 1].

    Attributes:
        sigma_min: the lowest level, epsilon of Song et al. (2023).
        sigma_max: the highest, their T.
        sigma_data: the standard deviation of the data that the preconditioning assumes.
        rho: the curvature of the Karras grid.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise UsageError(f"sigma_min {self.sigma_min} and sigma_max {self.sigma_max}: need 0 < min < max")
        if self.sigma_data <= 0 or self.rho <= 0:
            raise UsageError(f"sigma_data {self.sigma_data} and rho {self.rho} must be positive")
