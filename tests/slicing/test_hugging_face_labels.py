"""``labels`` beside the inputs of a Hugging Face model: they add a loss, so they are left out, and that is a fact."""

from __future__ import annotations

import torch
from torch import nn

from rankscope._base.facts import FactKind
from rankscope.slicing.meaning import Meaning
from rankscope.slicing.reader import Samples


class Config:
    def __init__(self, *, decodes: bool):
        self.is_encoder_decoder, self.use_cache = decodes, False


class Classifier(nn.Module):
    """What these models have in common: a config, an embedding, and a loss where labels are given."""

    def __init__(self, *, decodes: bool = False):
        super().__init__()
        self.config, self.table, self.head = Config(decodes=decodes), nn.Embedding(9, 4), nn.Linear(4, 3)

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, labels=None, **kwargs):
        hidden = self.table(input_ids) if inputs_embeds is None else inputs_embeds
        logits = self.head(hidden.mean(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


IDS, LABELS = torch.arange(12).reshape(3, 4) % 9, torch.tensor([0, 2, 1])


def test_labels_only_add_a_loss_and_are_left_out():
    samples = Samples(Classifier(), {"input_ids": IDS, "labels": LABELS}, None, Meaning())
    read = list(samples)
    assert [sample.keyword for sample in read] == ["inputs_embeds"] * 3
    assert all("labels" not in sample.extra for sample in read)
    left_out = [fact.values for fact in samples.facts() if fact.kind is FactKind.INPUT_LEFT_OUT]
    assert left_out == [{"name": "labels", "reason": "it only adds a loss to the outputs"}]


def test_labels_of_an_encoder_with_a_decoder_are_its_decoder_inputs():
    model = Classifier(decodes=True)
    read = list(Samples(model, {"input_ids": IDS, "labels": LABELS}, None, Meaning()))
    assert [int(sample.extra["labels"]) for sample in read] == LABELS.tolist()
    ids = {"input_ids": IDS, "labels": LABELS, "decoder_input_ids": IDS}  # then the labels are a loss again
    assert all("labels" not in sample.extra for sample in Samples(model, ids, None, Meaning()))


def test_a_label_column_that_forward_does_not_take_is_left_out():
    samples = Samples(Classifier(), {"input_ids": IDS, "label": LABELS}, None, Meaning())
    assert all("label" not in sample.extra for sample in samples)
    assert [fact.values["name"] for fact in samples.facts() if fact.kind is FactKind.INPUT_LEFT_OUT] == ["label"]
