"""The setting of classifier-free guidance: how strong, at which noise levels, and which networks can be guided.

:mod:`cmbench.diffusion.guidance` applies it.
"""

import math
from dataclasses import dataclass

from cmbench.errors import UsageError


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho & Salimans, 2022, arXiv 2207.12598) of every evaluation of the denoiser.

    Attributes:
        weight: w of ``D(null) + w (D(c) - D(null))``: 1 is the conditional denoiser at its usual cost, 0 the
            unconditional one, more than 1 guides. The paper's own w is this one less 1.
        interval: noise levels ``(low, high]`` that are guided, the others are left conditional (Kynkäänniemi et
            al., 2024, arXiv 2404.07724, equation 5); None guides them all.
    """

    weight: float = 1.0
    interval: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise UsageError(f"guidance must be a number from 0 up, not {self.weight}")
        if self.interval is None:
            return
        if len(self.interval) != 2 or not 0 <= self.interval[0] < self.interval[1]:
            raise UsageError(
                f"guidance_interval takes two noise levels, low < high, not {list(self.interval)}"
            )
        if not self.active:
            raise UsageError("guidance_interval is for a guidance other than 1: --set guidance=1.5")

    @property
    def active(self) -> bool:
        """Whether it changes anything."""
        return self.weight != 1

    def refusal(self, method: str, label_dropout: float | None, conditional: bool) -> str | None:
        """Why a network cannot be guided; None where it can, or need not.

        Args:
            method: that trained it.
            label_dropout: of its training; None where the method has no such setting.
            conditional: whether it takes labels.
        """
        if not self.active or (conditional and label_dropout):
            return None
        if label_dropout is None:
            return f"guidance needs a network trained with label dropout, and '{method}' trains without"
        missing = f"{method}.label_dropout=0.1"
        if not conditional:
            missing = f"network.class_conditional=true {missing}"
        return f"guidance needs a class-conditional network trained with label dropout: --set {missing}"


NONE = Guidance()
"""The denoiser as it is."""
