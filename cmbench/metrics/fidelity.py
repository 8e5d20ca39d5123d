"""Our classifiers inside torch-fidelity: ``calculate_metrics(feature_extractor="cmbench-digits", ...)``."""

from typing import Any

from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from cmbench.metrics.extractors import open_network

NAMES = {"cmbench-digits": "digits-cnn", "cmbench-mnist": "mnist-cnn", "cmbench-cifar10": "cifar10-resnet"}


class ClassifierFeatures(FeatureExtractorBase):  # type: ignore[misc]
    """One of our classifiers behind torch-fidelity's interface, layers ``features`` and ``logits``."""

    def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:  # noqa: ARG002
        super().__init__(name, features_list)
        self.network = open_network(NAMES[name])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The requested layers of uint8 images [B, 3, H, W]."""
        features = self.network(images)
        return tuple(features[layer] for layer in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """The layers that there are."""
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Class scores for the Inception Score, features for everything else."""
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled() -> bool:
        """Whether ``torch.compile`` takes it."""
        return False


def register() -> None:
    """Make :data:`NAMES` known to torch-fidelity; a second call changes nothing."""
    for name in NAMES:
        if name not in FEATURE_EXTRACTORS_REGISTRY:
            register_feature_extractor(name, ClassifierFeatures)
