"""Heads found by themselves in the ecosystem's classifiers, and refused where none is linear."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rankscope._base.errors import DataError, ModelError
from rankscope.features import find_head
from rankscope.features.heads import head_mismatch, linear_parts


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet18", "fc"), ("vit_tiny_patch16_224", "head"), ("convnext_atto", "head.fc"), ("vgg11", "head.fc")],
)
def test_timm(name, expected):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name)  # not on the meta device: timm 1.0.20 reads numbers of tensors while it builds
    found, head = find_head(model)
    assert found == expected
    assert head.out_features == 1000


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet18", "fc"), ("mobilenet_v2", "classifier.1"), ("vit_b_16", "heads.head"), ("alexnet", "classifier.6")],
)
def test_torchvision(name, expected):
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        assert find_head(models.get_model(name))[0] == expected


def test_hugging_face():
    transformers = pytest.importorskip("transformers")
    tiny = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    vit = transformers.ViTForImageClassification(transformers.ViTConfig(**tiny, num_labels=3))
    assert find_head(vit)[0] == "classifier"
    resnet = transformers.ResNetForImageClassification(
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=3)
    )
    assert find_head(resnet)[0] == "classifier.1"


def test_without_a_head_the_remedy_is_named():
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        for model in (timm.create_model("resnet18", num_classes=0), nn.Sequential(nn.Linear(3, 3), nn.ReLU())):
            with pytest.raises(ModelError, match="no final linear classifier that can be found; give the head itself"):
                find_head(model)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

    def get_classifier(self):
        return self.a, self.b


def test_two_classifiers_are_named():
    with pytest.raises(ModelError, match=r"Two has 2 classifiers \(a, b\); give one"):
        find_head(Two())


def test_parts_of_a_head():
    linear = nn.Linear(4, 3, bias=False)
    weight, bias = linear_parts(linear, 4)
    assert torch.equal(weight, linear.weight)
    assert bias.tolist() == [0.0, 0.0, 0.0]
    conv = nn.Conv2d(4, 3, 1)
    weight, bias = linear_parts(conv, 4)
    x = torch.randn(2, 4)
    torch.testing.assert_close(x @ weight.T + bias, conv(x[:, :, None, None]).flatten(1))
    assert linear_parts(nn.Conv2d(4, 3, 3), 4) is None
    assert linear_parts(nn.Sequential(linear), 4) is None
    with pytest.raises(DataError, match="width 4, these have 5"):
        linear_parts((linear.weight, None), 5)


def test_mismatch_is_measured_over_all_samples():
    x = torch.randn(9000, 3)
    logits = 2 * x
    assert head_mismatch(lambda rows: 2 * rows, x, logits) == 0
    logits[8999, 0] += 1e-4
    assert 0 < head_mismatch(lambda rows: 2 * rows, x, logits) < 1e-3
    logits[8999, 0] += 1
    with pytest.raises(DataError, match="does not reproduce the stored logits"):
        head_mismatch(lambda rows: 2 * rows, x, logits)
