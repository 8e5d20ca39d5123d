"""The registry: entry points by name, and what is said of those that cannot be loaded."""

import dataclasses
from importlib.metadata import EntryPoint

import pytest

from cmbench import methods, registry
from cmbench.errors import UsageError, WorkError
from cmbench.methods import DIRECT, DISTILLATION, SAMPLERS, Method
from cmbench.metrics import extractors, protocols
from cmbench.metrics.extractors import Definition


@pytest.fixture
def plugged(monkeypatch):
    """Entry points of this test alone, by kind."""
    points: dict[str, dict[str, EntryPoint]] = {kind: {} for kind in registry.GROUPS}

    def add(kind: str, name: str, value: str) -> None:
        points[kind][name] = EntryPoint(name, value, registry.GROUPS[kind])

    monkeypatch.setattr(registry, "_points", points.__getitem__)
    return add


def test_the_methods_of_the_paper_are_registered():
    assert set(registry.names("method")) >= {"cd", "ct", "edm", "ddim", "pd"}
    assert registry.names("method") == sorted(registry.names("method"))
    assert set(registry.names("data set")) >= {"digits", "mnist", "cifar10", "imagenet64", "images"}


@pytest.mark.parametrize("name", registry.names("method"))
def test_every_registered_method_is_complete(name: str):
    method = methods.get(name)
    assert isinstance(method, Method)
    assert method.name == name
    assert method.group in (SAMPLERS, DISTILLATION, DIRECT)
    assert method.label
    assert method.reference
    assert method.summary
    recipe = method.recipe()
    for nfe in method.nfes:
        assert method.refuses(nfe, recipe) is None
    parent = method.parent(method.variant(method.nfes[0], recipe), recipe)
    assert method.train is not None or parent is not None
    if parent:
        assert parent.method in registry.names("method")


@pytest.mark.parametrize("name", registry.names("data set"))
def test_every_registered_data_set_loads_and_has_its_name(name: str):
    spec = registry.load("data set", name)
    assert spec.name == name
    assert spec.how_to_get


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UsageError, match="unknown method 'cdd': did you mean 'cd'"):
        registry.load("method", "cdd")
    with pytest.raises(UsageError, match="unknown data set 'cifar': did you mean 'cifar10'"):
        registry.load("data set", "cifar")
    with pytest.raises(UsageError, match=r"unknown method 'xyzzy': known: .*cd, ct"):
        registry.load("method", "xyzzy")


def test_nothing_registered(plugged):
    assert registry.names("method") == []
    with pytest.raises(UsageError, match="known: none"):
        registry.load("method", "cd")


def test_a_plug_in_is_found_like_any_other(plugged):
    plugged("method", "mine", "cmbench.consistency.methods:CD")
    assert registry.names("method") == ["mine"]
    assert methods.get("mine").name == "cd"


@pytest.mark.parametrize("value", ["no_such_package.x:Y", "cmbench.consistency.methods:NOTHING"])
def test_a_broken_plug_in_is_one_clear_error_and_others_still_load(plugged, value: str):
    plugged("method", "broken", value)
    plugged("method", "good", "cmbench.consistency.methods:CD")
    with pytest.raises(WorkError, match=f"method 'broken' .{value}. cannot be loaded"):
        methods.get("broken")
    assert methods.get("good").name == "cd"


def test_a_plug_in_that_is_no_method(plugged):
    plugged("method", "odd", "json:dumps")
    with pytest.raises(WorkError, match="registered as function, not as a cmbench Method"):
        methods.get("odd")


def test_names_are_listed_without_importing_anything():
    import subprocess
    import sys

    code = (
        "import sys; from cmbench import registry; registry.names('method'); registry.names('data set');"
        "print([m for m in ('torch', 'numpy', 'cmbench_baselines', 'cmbench.consistency') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


PLUGGED = Definition("mine", {"features": 64, "logits": 10}, "mine.safetensors", None, None, lambda *_: None)
PROTOCOL = dataclasses.replace(protocols.get("digits"), name="mine", title="another k")


def test_extractors_and_protocols_of_plug_ins_are_found(plugged):
    plugged("extractor", "mine", f"{__name__}:PLUGGED")
    plugged("protocol", "mine", f"{__name__}:PROTOCOL")
    assert extractors.definition("mine") is PLUGGED and "mine" in extractors.names()
    assert protocols.get("mine") is PROTOCOL and protocols.names()[-1] == "mine"
    with pytest.raises(UsageError, match="unknown protocol 'minne': did you mean 'mine'"):
        protocols.get("minne")
    with pytest.raises(UsageError, match="unknown extractor 'digits-cn': did you mean 'digits-cnn'"):
        extractors.definition("digits-cn")


def test_a_plug_in_of_another_type_is_named(plugged):
    plugged("extractor", "odd", f"{__name__}:PROTOCOL")
    plugged("protocol", "odd", f"{__name__}:PLUGGED")
    with pytest.raises(WorkError, match="extractor 'odd' is registered as Protocol"):
        extractors.definition("odd")
    with pytest.raises(WorkError, match="protocol 'odd' is registered as Definition"):
        protocols.get("odd")
