"""What the documentation's commands presume that a reader has: a small one of each, under the name of the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from small_world import NET, fitted, write_images
from torch import nn

import rankscope as rs
from rankscope.demo.digits_network import digits_network
from rankscope.loading import load_model

__all__ = ["NETS", "build_world", "words"]

NETS = """
from pathlib import Path

import torch
from safetensors.torch import load_file
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer


def untrained(num_classes=10):
    model = ResNet(BasicBlock, [2, 2, 2, 2], channels=(8, 8, 12, 16), stem_width=8, num_classes=num_classes)
    model.input_size = (3, 32, 32)
    return model


def resnet(num_classes=10):
    torch.manual_seed(0)
    model = untrained(num_classes)
    kept = load_file(Path(__file__).with_name("resnet.safetensors"))
    model.load_state_dict({k: v for k, v in kept.items() if num_classes or not k.startswith("fc.")})
    return model


def build():
    return resnet()


def vit():
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=8, depth=3, num_heads=2, num_classes=10)
    model.input_size = (3, 32, 32)
    return model
"""
_GATE = """
import torch
from torch import nn


class Gate(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x.mean((2, 3), keepdim=True))
"""
_WORDS = ["[UNK]", "[CLS]", "[SEP]", "a", "sentence", "one", "of", "another", "length", "the", "cat", "sat"]


def words(folder: Path) -> None:
    """A text model with its tokenizer, as ``save_pretrained`` leaves them."""
    import tokenizers
    import transformers

    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: k for k, word in enumerate(_WORDS)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    ends = [("[CLS]", 1), ("[SEP]", 2)]
    made.post_processor = tokenizers.processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    config = transformers.BertConfig(
        vocab_size=len(_WORDS), hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=8, num_labels=2,
    )  # fmt: skip
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]").save_pretrained(folder)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)


def build_world(root: Path) -> None:
    """Write everything into ``root``."""
    torch.manual_seed(0)
    for name in ("nets", "path/to", "mypackage", "runs/ssl/checkpoints", "lightning_logs/version_3", "digits-run"):
        (root / name).mkdir(parents=True)
    for name in ("IMAGEFOLDER", "my/folder", "imagenet/val"):
        write_images(root / name)
    (root / "texts.txt").write_text("the cat sat\na sentence\none of another length\n")
    (root / "mypackage/blocks.py").write_text(_GATE)
    np.save(root / "h.npy", torch.randn(40, 4, 4, 4).numpy())
    (root / "path/to/net.py").write_text(NET.replace("def small(", "def factory("))
    factory = load_model(f"{root / 'path/to/net.py'}:factory", weights="random").model
    save_file({k: v.contiguous() for k, v in factory.state_dict().items()}, root / "net.safetensors")
    (root / "nets/small.py").write_text(NETS)
    (root / "nets/mine.py").write_text(NETS)
    fitted(f"{root / 'nets/small.py'}:untrained", root / "IMAGEFOLDER", root / "nets/resnet.safetensors")
    trained = load_model(f"{root / 'nets/small.py'}:resnet").model.state_dict()
    for step in (0, 10):
        state = {k: v * (1 + step / 100) if v.is_floating_point() else v for k, v in trained.items()}
        bare = {k: v for k, v in state.items() if not k.startswith("fc.")}
        torch.save(bare, root / f"runs/ssl/checkpoints/step{step}.pt")
        torch.save(
            {"state_dict": state, "global_step": step, "epoch": step // 10},
            root / f"lightning_logs/version_3/epoch={step // 10}-step={step}.ckpt",
        )
        torch.save(digits_network("random", seed=step).state_dict(), root / f"digits-run/step{step}.pt")
    for step in (500, 1000):
        words(root / f"out/bert/checkpoint-{step}")
    words(root / "FOLDER")
    _measured(root)


def _measured(root: Path) -> None:
    """Runs that were measured and histories that were written before."""
    x = torch.randn(12, 6)
    nets = {name: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)) for name in ("plain", "skip", "third")}
    for name, net in nets.items():
        rs.jacobian_rank(net, x[:3], progress=False).save(root / "runs" / name)
        _history(net, x, root / f"{name}.jsonl")
    _history(nets["plain"], x, root / "out/bert/rank_history.jsonl")
    for step in (0, 5):
        (root / "checkpoints").mkdir(exist_ok=True)
        torch.save(nets["plain"].state_dict(), root / f"checkpoints/step{step}.pt")
    rs.watch(root / "checkpoints", nets["plain"], x, progress=False).save(root / "runs/watched")


def _history(net: nn.Module, x: torch.Tensor, path: Path) -> None:
    with rs.RankMonitor(net, inputs=x, every=5, path=path) as monitor:
        for _ in range(5):
            net(x)
            monitor.step()
