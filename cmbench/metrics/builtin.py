"""The built-in protocols: whose evaluation each one is, to the settings that move its numbers."""

import json
from pathlib import Path
from typing import Any

from cmbench.metrics.protocols import ExtractorSpec, Protocol, ReferenceSpec, metric

_INCEPTION = ExtractorSpec("inception-v3", "6726825d", "tf1-bilinear")
_FIDELITY_IS = metric(
    "inception-score", "inception-v3", "logits_unbiased", "IS", splits=10, shuffle_seed=2020
)
_CLEANFID = "https://www.cs.cmu.edu/~clean-fid/stats/"
_ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/"
_EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs/"
_ANY = {"*": ReferenceSpec("training set")}


def _adm_reference(folder: str, file: str) -> ReferenceSpec:
    return ReferenceSpec(Path(file).stem, file, f"{_ADM}{folder}/{file}", rebuild=False)


def _own(dataset: str, extractor: str, suffix: str, samples: int, references: int | None) -> Protocol:
    """A protocol whose features are those of our own classifier for this data set, and are named after it."""
    spec = ExtractorSpec(extractor, _index("extractors").get(extractor, {}).get("sha256"))
    return Protocol(
        name=extractor if dataset == "cifar10" else dataset,
        title=f"{dataset} by the features and class probabilities of our own classifier, {extractor}",
        source="cmbench; comparable within cmbench only",
        quantizer="round",
        extractors=(spec,),
        metrics=(
            metric("frechet", extractor, "features", f"FD-{suffix}"),
            metric("inception-score", extractor, "logits", f"IS-{suffix}", splits=10, shuffle_seed=2020),
            metric(
                "precision-recall", extractor, "features",
                f"Prec-{suffix}", f"Rec-{suffix}",
                reference_count=references, sample_count=references,
            ),
            metric("kid", extractor, "features", f"KID-{suffix}", subset_size=min(1000, samples // 8)),
        ),
        references={dataset: _training_set(dataset, extractor)},
        samples=samples,
    )  # fmt: skip


def _training_set(dataset: str, extractor: str) -> ReferenceSpec:
    """The statistics that come with the package where there are some, else the images themselves."""
    file, name = f"{extractor}-train.npz", f"{dataset} training set"
    digest = _index("references").get(file)
    return ReferenceSpec(name) if digest is None else ReferenceSpec(name, file, None, digest, rebuild=False)


def _index(kind: str) -> dict[str, Any]:
    path = Path(__file__).parent.parent / "assets" / kind / "index.json"
    return json.loads(path.read_text()) if path.is_file() else {}


PROTOCOLS = (
    Protocol(
        name="cm-cifar10",
        title="Consistency Models, CIFAR-10: FID of clean-fid's legacy_tensorflow, IS of torch-fidelity",
        source="Song et al. 2023 (arXiv 2303.01469), openai/consistency_models_cifar10",
        quantizer="truncate",
        extractors=(_INCEPTION,),
        metrics=(
            metric("frechet", "inception-v3", "pool3", "FID"),
            _FIDELITY_IS,
        ),
        references={
            "cifar10": ReferenceSpec(
                "cifar10_legacy_tensorflow_train_32",
                "cifar10_legacy_tensorflow_train_32.npz",
                _CLEANFID + "cifar10_legacy_tensorflow_train_32.npz",
            )
        },
    ),
    Protocol(
        name="adm",
        title="ADM evaluator (ImageNet-64, LSUN): FID, sFID, IS, precision, recall",
        source="Dhariwal & Nichol 2021 (arXiv 2105.05233), openai/guided-diffusion",
        quantizer="truncate",
        extractors=(_INCEPTION,),
        metrics=(
            metric("frechet", "inception-v3", "pool3", "FID"),
            metric("frechet", "inception-v3", "spatial", "sFID", keys=("sfid",)),
            metric("inception-score", "inception-v3", "logits_unbiased", "IS", split_size=5000),
            metric(
                "precision-recall", "inception-v3", "pool3", "Precision", "Recall", reference_count=10_000
            ),
        ),
        references={
            "imagenet64": _adm_reference("imagenet/64", "VIRTUAL_imagenet64_labeled.npz"),
            "lsun-bedroom": _adm_reference("lsun/bedroom", "VIRTUAL_lsun_bedroom256.npz"),
            "lsun-cat": _adm_reference("lsun/cat", "VIRTUAL_lsun_cat256.npz"),
            **_ANY,
        },
    ),
    Protocol(
        name="edm",
        title="EDM: FID of 50,000 rounded images",
        source="Karras et al. 2022 (arXiv 2206.00364), NVlabs/edm",
        quantizer="round",
        extractors=(_INCEPTION,),
        metrics=(metric("frechet", "inception-v3", "pool3", "FID"),),
        references={
            "cifar10": ReferenceSpec("cifar10-32x32", "cifar10-32x32.npz", _EDM + "cifar10-32x32.npz"),
            "imagenet64": ReferenceSpec(
                "imagenet-64x64", "imagenet-64x64.npz", _EDM + "imagenet-64x64.npz", rebuild=False
            ),
            **_ANY,
        },
    ),
    Protocol(
        name="clean",
        title="clean-fid: FID of images resized by Pillow's bicubic filter",
        source="Parmar et al. 2022 (arXiv 2104.11222), GaParmar/clean-fid",
        quantizer="round",
        extractors=(ExtractorSpec("inception-v3", "6726825d", "pil-bicubic"),),
        metrics=(metric("frechet", "inception-v3", "pool3", "FID (clean)"),),
        references={
            "cifar10": ReferenceSpec(
                "cifar10_clean_train_32",
                "cifar10_clean_train_32.npz",
                _CLEANFID + "cifar10_clean_train_32.npz",
            ),
            **_ANY,
        },
    ),
    Protocol(
        name="dgm",
        title="dgm-eval: Fréchet distance, FD∞, precision to coverage and AuthPct on DINOv2 features",
        source="Stein et al. 2023 (arXiv 2306.04675), layer6ai-labs/dgm-eval",
        quantizer="round",
        extractors=(ExtractorSpec("dinov2-vit-l-14", None, "pil-bicubic-uint8"),),
        metrics=(
            metric("frechet", "dinov2-vit-l-14", "cls", "FD-DINOv2"),
            metric("fid-infinity", "dinov2-vit-l-14", "cls", "FD∞-DINOv2"),
            metric(
                "precision-recall", "dinov2-vit-l-14", "cls", "Precision (DINOv2)", "Recall (DINOv2)",
                k=5, reference_count=10_000, sample_count=10_000,
            ),
            metric(
                "density-coverage", "dinov2-vit-l-14", "cls", "Density (DINOv2)", "Coverage (DINOv2)",
                reference_count=10_000, sample_count=10_000,
            ),
            metric("authpct", "dinov2-vit-l-14", "cls", "AuthPct (DINOv2)"),
        ),
        references=_ANY,
    ),
    Protocol(
        name="torch-fidelity",
        title="torch-fidelity 0.4: FID, IS, KID, precision and recall on VGG16 features",
        source="toshas/torch-fidelity",
        quantizer="truncate",
        extractors=(_INCEPTION, ExtractorSpec("vgg16", "397923af", "tf1-bilinear")),
        metrics=(
            metric("frechet", "inception-v3", "pool3", "FID"),
            _FIDELITY_IS,
            metric("kid", "inception-v3", "pool3", "KID", seed=2020),
            metric("precision-recall", "vgg16", "fc2_relu", "Precision (VGG16)", "Recall (VGG16)"),
        ),
        references=_ANY,
    ),
    Protocol(
        name="cmmd",
        title="CMMD: squared MMD of CLIP embeddings",
        source="Jayasumana et al. 2024 (arXiv 2401.09603)",
        quantizer="round",
        extractors=(ExtractorSpec("clip-vit-l-14-336", "3035c92b", "half-pixel-bicubic"),),
        metrics=(metric("cmmd", "clip-vit-l-14-336", "embedding", "CMMD"),),
        references=_ANY,
    ),
    _own("digits", "digits-cnn", "digits", 1_797, None),
    _own("mnist", "mnist-cnn", "mnist", 10_000, 10_000),
    _own("cifar10", "cifar10-resnet", "resnet", 50_000, 10_000),
)  # fmt: skip
