"""One family of timm alone gives the models that all of timm gives."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import torch
from deepgalaxy.models.backbone import Encoder

backbone, image = sys.argv[1], torch.rand(1, 1, 64, 64)
torch.manual_seed(0)
alone = Encoder(backbone, 8, 4).eval()
assert not {"timm", "torchvision", "huggingface_hub", "torch._dynamo"} & set(sys.modules), "all of timm was imported"
import timm
assert len(timm.list_models()) > 1000 and timm.data.create_transform
torch.manual_seed(0)
assert torch.equal(alone(image), Encoder(backbone, 8, 4).eval()(image))
"""


def run(program, *arguments):
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("backbone", ["mobilenetv4_conv_small", "resnet18", "convnext_atto"])
def test_one_family_alone_is_the_same_model_and_all_of_timm_can_follow(backbone):
    done = run(PROGRAM, backbone)
    assert done.returncode == 0, done.stderr


def test_unknown_backbone_is_answered_with_near_names():
    done = run("from deepgalaxy.models.backbone import Encoder; Encoder('resnet81', 8, 4)")
    assert "timm has no model of this name; did you mean" in done.stderr
