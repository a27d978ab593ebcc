"""The zoo's networks: they learn, they are reproducible, and Keras computes the same."""

import numpy as np
import pytest
import torch

import goodnet
from goodnet.attacks.networks import ARCHITECTURES, build
from goodnet.errors import GoodnetError
from goodnet.formats.keras_export import write_keras

COLOUR, GREY, FACE = (3, 32, 32), (1, 28, 28), (3, 55, 47)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("shape", [COLOUR, FACE])
def test_any_size_gives_logits_and_the_seed_decides(name, shape):
    state = torch.get_rng_state()
    one, again, other = (build(name, shape, 7, seed=seed).eval() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    images = torch.rand(3, *shape, generator=torch.manual_seed(0))
    assert one(images).shape == (3, 7)
    assert torch.equal(one(images), again(images))
    assert not torch.equal(one(images), other(images))


@pytest.mark.parametrize(
    ("name", "shape"), [("nothing", COLOUR), ("cnn", (3, 4, 4)), ("deepid", (3, 16, 16))]
)
def test_an_impossible_network_is_refused(name, shape):
    with pytest.raises(ValueError, match=name):
        build(name, shape, 10)


@pytest.mark.parametrize(
    ("name", "shape", "suffix"),
    [
        ("cnn", COLOUR, ".keras"),
        ("cnn", GREY, ".h5"),
        ("resnet", COLOUR, ".h5"),
        ("deepid", FACE, ".keras"),
        ("separable", GREY, ".h5"),
    ],
)
def test_keras_computes_the_same(name, shape, suffix, tmp_path):
    keras = pytest.importorskip("keras")
    network = build(name, shape, 9, seed=3)
    # Untrained batch norms are the identity: they would not show a mistake.
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(part.running_var, 0.5, 2.0)
            torch.nn.init.uniform_(part.weight, 0.5, 2.0)
    path = tmp_path / f"net{suffix}"
    write_keras(network, shape, path)
    images = torch.rand(5, *shape, generator=torch.manual_seed(1))
    with torch.no_grad():
        wanted = network.eval()(images).numpy()
    given = keras.models.load_model(path).predict(
        images.permute(0, 2, 3, 1).contiguous().numpy(), verbose=0
    )
    np.testing.assert_allclose(given, wanted, atol=2e-5 * np.abs(wanted).max() + 1e-6)
    back = goodnet.load(path).logits(images).numpy()
    np.testing.assert_allclose(back, wanted, atol=2e-5 * np.abs(wanted).max() + 1e-6)


def test_a_network_without_keras_layers_is_refused(tmp_path):
    pytest.importorskip("keras")
    with pytest.raises(GoodnetError, match="O004"):
        write_keras(build("vit", COLOUR, 5), COLOUR, tmp_path / "net.keras")
    assert not list(tmp_path.iterdir())
