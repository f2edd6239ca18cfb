"""Texts through a model's own tokenizer, beside plain autograd of the embeddings in float64."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rankscope as rs
from rankscope._base.facts import FactKind, of_kind
from rankscope.cli.main import main
from rankscope.loading import read_texts

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["[UNK]", "the", "cat", "sat", "on", "a", "mat"]
TEXTS = ["the cat sat", "a mat", "the cat sat on the mat", "cat"]
COUNTS = (3, 2, 6, 1)


def tokenizer() -> Any:
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")


def bert() -> Any:
    config = transformers.BertConfig(
        vocab_size=7, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=8,
    )  # fmt: skip
    config._attn_implementation = "eager"
    return transformers.BertModel(config, add_pooling_layer=False).eval()


def gpt() -> Any:
    config = transformers.GPT2Config(vocab_size=7, n_embd=8, n_layer=2, n_head=2, n_positions=8)
    config._attn_implementation = "eager"
    return transformers.GPT2Model(config).eval()


@pytest.fixture(params=[bert, gpt])
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return request.param()


def truth(model: Any, text: str) -> np.ndarray[Any, Any]:
    """The output's Jacobian with respect to the token embeddings; positions are the model's own."""
    model = model.double()
    ids = torch.tensor([[WORDS.index(word) for word in text.split()]])
    embeds = model.get_input_embeddings()(ids).detach()

    def run(x: torch.Tensor) -> torch.Tensor:
        return model(inputs_embeds=x, use_cache=False).last_hidden_state

    found = torch.autograd.functional.jacobian(run, embeds)
    model.float()
    return found.reshape(-1, embeds.numel()).numpy()


def test_each_text_has_its_own_jacobian(model: Any) -> None:
    profile = rs.jacobian_rank(model, read_texts(model, tokenizer(), TEXTS), cut_points="output", columns="all")
    assert profile.columns.counts == tuple(8 * n for n in COUNTS)
    for text, n, spectrum in zip(TEXTS, COUNTS, profile.layers[0].spectra, strict=True):
        assert spectrum is not None
        assert spectrum.shape == (8 * n, 8 * n)
        sigma = np.linalg.svd(truth(model, text), compute_uv=False)
        # float32 through a few layers of width 8: far below 1e-4; without squares, values under 1e-3 are rougher
        np.testing.assert_allclose(spectrum.singular_values, sigma, atol=1e-4 * sigma[0])
    (fact,) = of_kind(profile.facts, FactKind.DIFFERENTIATED)
    assert fact["name"] == "inputs_embeds"


def test_all_coordinates_of_one_token(model: Any) -> None:
    profile = rs.jacobian_rank(
        model, read_texts(model, tokenizer(), TEXTS[::2]), cut_points="output", columns=rs.Positions([2])
    )
    assert profile.columns.count == 8
    for text, spectrum in zip(TEXTS[::2], profile.layers[0].spectra, strict=True):
        assert spectrum is not None
        sigma = np.linalg.svd(truth(model, text)[:, 16:24], compute_uv=False)
        np.testing.assert_allclose(spectrum.singular_values, sigma, atol=1e-4 * sigma[0])


def test_ids_without_a_mask_are_named_too() -> None:
    profile = rs.jacobian_rank(bert(), read_texts(bert(), lambda text: {"input_ids": [1, 2]}, ["a b"]))
    assert [f["name"] for f in of_kind(profile.facts, FactKind.DIFFERENTIATED)] == ["inputs_embeds"]


@pytest.mark.parametrize(
    ("texts", "match"),
    [
        ([], "there is no text"),
        (["a mat", "  "], "text 1 is empty"),
        (["the " * 9], "text 0 has 9 tokens, and the model takes at most 8"),
        ([3], "text 0 is a int"),
    ],
)
def test_texts_that_cannot_be_read(texts: list[Any], match: str) -> None:
    with pytest.raises(rs.DataError, match=match):
        read_texts(bert(), tokenizer(), texts)


def test_tokens_that_the_model_does_not_know() -> None:
    with pytest.raises(rs.DataError, match="token 7, and the model knows 7"):
        read_texts(bert(), lambda text: {"input_ids": [1, 7]}, "a b")


def test_models_that_take_no_single_text() -> None:
    config = transformers.T5Config(vocab_size=7, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(rs.UsageError, match="encoder–decoder, which needs a second text"):
        read_texts(transformers.T5ForConditionalGeneration(config), tokenizer(), "a mat")
    with pytest.raises(rs.UsageError, match="no model of Hugging Face"):
        read_texts(torch.nn.Linear(2, 2), tokenizer(), "a mat")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    bert().save_pretrained(tmp_path / "net")
    tokenizer().save_pretrained(tmp_path / "net")
    return tmp_path / "net"


def test_the_command_reads_sentences_and_files(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "more.txt").write_text("a mat\nthe cat sat on the mat\n")
    args = ["profile", f"hf:{folder}", "--text", "the cat sat", "--text", str(tmp_path / "more.txt"), "--device", "cpu"]
    assert main([*args, "--out", str(tmp_path / "run"), "--theory", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == ["text 0", "text 1", "text 2"]
    assert found["columns"]["counts"] == [24, 16, 48]
    assert (tmp_path / "run" / "report.html").exists()
    assert main([*args, "--out", str(tmp_path / "run"), "--columns", "position:2"]) == 2
    assert re.search(r"^error: text 1: position 2 is outside an input of 2 positions", capsys.readouterr().err, re.M)


def test_the_command_refuses_in_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "blank.txt").write_text("a mat\n\nthe cat\n")
    (tmp_path / "none.txt").write_text("")
    bert().save_pretrained(tmp_path / "bare")
    for args, code, match in (
        ([f"hf:{folder}", "--text", tmp_path / "blank.txt"], 1, "line 2 of blank.txt is blank"),
        ([f"hf:{folder}", "--text", tmp_path / "none.txt"], 1, "none.txt holds no text"),
        ([f"hf:{folder}", "--text", tmp_path / "nowhere.txt"], 1, "nowhere.txt' does not exist"),
        ([f"hf:{folder}", "--text", "Texts.CSV"], 1, "--text 'Texts.CSV' does not exist"),
        ([f"hf:{folder}", "--text", " "], 2, "--text is ' ', which is empty"),
        ([f"hf:{tmp_path / 'bare'}", "--text", "a mat"], 1, "holds no tokenizer"),
        (["digits", "--text", "a mat"], 2, "--text needs a model of Hugging Face"),
        ([f"hf:{folder}", "--text", "a", "--images", "noise"], 2, "--text and --images choose different"),
    ):
        assert main(["profile", *map(str, args), "--out", str(tmp_path / "run"), "--device", "cpu"]) == code
        lines = capsys.readouterr().err.strip().splitlines()
        assert re.match(rf"error: .*{re.escape(match)}", lines[-1]), lines


def classifier() -> Any:
    config = transformers.BertConfig(
        vocab_size=7, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=8, num_labels=3,
    )  # fmt: skip
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(config).eval()


def test_collect_keeps_the_features_of_each_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = classifier()
    net.save_pretrained(tmp_path / "net")
    tokenizer().save_pretrained(tmp_path / "net")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    base = ["collect", f"hf:{tmp_path / 'net'}", "--device", "cpu", "--out", str(tmp_path / "run")]
    args = [*base, "--text", str(tmp_path / "texts.txt")]
    layer = "bert.encoder.layer.0"
    assert main([*args, "--cut-points", layer]) == 0
    assert "no labels, so no accuracy" in capsys.readouterr().out
    found = rs.Collection.load(tmp_path / "run")
    assert found.labels.tolist() == [-1] * 4
    maps: list[torch.Tensor] = []
    handle = net.bert.encoder.layer[0].register_forward_hook(
        lambda _m, _a, out: maps.append(out if isinstance(out, torch.Tensor) else out[0])
    )
    with torch.no_grad():
        for k, text in enumerate(TEXTS):
            out = net(input_ids=torch.tensor([[WORDS.index(word) for word in text.split()]]))
            # float32 by the same kernels, from weights that were saved and loaded
            torch.testing.assert_close(found.logits[k], out.logits[0], rtol=0, atol=1e-5)
    handle.remove()
    rows = torch.stack([m[0].double().mean(0) for m in maps])
    moments = found.moments[layer]
    np.testing.assert_allclose(moments.scatter.numpy() / 3, np.cov(rows.numpy().T), atol=1e-5)
    # the same texts are read back, others are not these
    assert main([*args, "--cut-points", layer]) == 0
    assert "read back" in capsys.readouterr().out
    assert main([*base, "--text", "a mat", "--cut-points", layer]) == 1
    assert "holds shards of another data set" in capsys.readouterr().err
    assert main(["clsdim", str(tmp_path / "run")]) == 1
    assert "was collected without labels" in capsys.readouterr().err
    found_json = json.loads((tmp_path / "run" / "collection.json").read_text())
    assert found_json["accuracy"] is None


def test_collect_refuses_in_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args, code, match in (
        ([f"hf:{folder}", "--text", "a mat"], 1, "BertModel has no final linear classifier"),
        ([f"hf:{folder}", "--text", "a mat", "--data", "digits"], 2, "--text and --data choose different"),
        ([f"hf:{folder}", "--text", "a mat", "--labels", "y.npy"], 2, "--text and --labels"),
        ([f"hf:{folder}"], 2, "give --data, or --text"),
        (["digits", "--text", "a mat"], 2, "--text needs a model of Hugging Face"),
    ):
        assert main(["collect", *map(str, args), "--out", str(tmp_path / "run"), "--device", "cpu"]) == code
        lines = capsys.readouterr().err.strip().splitlines()
        assert re.match(rf"error: .*{re.escape(match)}", lines[-1]), lines


def decoder() -> Any:
    """Its logits are those of a text's last token; it has no padding token."""
    config = transformers.GPT2Config(vocab_size=7, n_embd=8, n_layer=2, n_head=2, n_positions=8, num_labels=3)
    config._attn_implementation = "eager"
    torch.manual_seed(1)
    return transformers.GPT2ForSequenceClassification(config).eval()


def llama() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=7, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, num_labels=3,
        max_position_embeddings=8, pad_token_id=0,
    )  # fmt: skip
    config._attn_implementation = "eager"
    torch.manual_seed(1)
    return transformers.LlamaForSequenceClassification(config).eval()


@pytest.mark.parametrize("make", [classifier, decoder, llama])
def test_every_command_takes_texts_for_a_classifier(make: Any, tmp_path: Path) -> None:
    """Features and logits of each text alone, as the model itself gives them."""
    net = make()
    net.save_pretrained(tmp_path / "net")
    tokenizer().save_pretrained(tmp_path / "net")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    given = [f"hf:{tmp_path / 'net'}", "--device", "cpu", "--text", str(tmp_path / "texts.txt")]
    assert main(["collect", *given, "--out", str(tmp_path / "run")]) == 0
    found = rs.Collection.load(tmp_path / "run")
    block = next(name for name, module in net.named_modules() if isinstance(module, torch.nn.ModuleList)) + ".1"
    assert main(["features", *given, "--cut-points", block, "--reduce", "pool", "--out", str(tmp_path / "f")]) == 0
    record = json.loads((tmp_path / "f" / "features.json").read_text())
    assert record["data"] == "texts"
    means: list[torch.Tensor] = []
    layer = net.get_submodule(block)
    layer.register_forward_hook(
        lambda _m, _a, out: means.append((out if isinstance(out, torch.Tensor) else out[0])[0].double().mean(0))
    )
    with torch.no_grad():
        for k, text in enumerate(TEXTS):
            out = net(input_ids=torch.tensor([[WORDS.index(word) for word in text.split()]]))
            # float32 by the same kernels, from weights that were saved and loaded
            torch.testing.assert_close(found.logits[k], out.logits[0], rtol=0, atol=1e-5)
    rows = torch.stack(means)
    values = torch.linalg.svdvals(rows - rows.mean(0))
    (row,) = record["layers"]
    assert row["samples"] == 4
    assert row["pca_dimension"] == int((values > 1e-4 * values[0]).sum())  # three: no value lies near
    assert main(["profile", *given, "--cut-points", "output", "--columns", "all", "--out", str(tmp_path / "p")]) == 0
    profile = rs.JacobianProfile.load(tmp_path / "p")
    for text, spectrum in zip(TEXTS, profile.layers[0].spectra, strict=True):
        double = net.double()
        embeds = double.get_input_embeddings()(torch.tensor([[WORDS.index(word) for word in text.split()]])).detach()
        jacobian = torch.autograd.functional.jacobian(lambda x: net(inputs_embeds=x, use_cache=False).logits, embeds)
        sigma = torch.linalg.svdvals(jacobian.reshape(3, -1)).numpy()
        assert spectrum is not None
        # float32 through two layers of width 8
        np.testing.assert_allclose(np.asarray(spectrum.singular_values)[:3], sigma, atol=1e-4 * sigma[0])


def bart() -> Any:
    """An encoder–decoder that classifies by the decoder's state at the last token."""
    config = transformers.BartConfig(
        vocab_size=7, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8, max_position_embeddings=16, num_labels=3,
        pad_token_id=1, bos_token_id=1, eos_token_id=6, decoder_start_token_id=6, forced_eos_token_id=6,
    )  # fmt: skip
    config._attn_implementation = "eager"
    torch.manual_seed(1)
    return transformers.BartForSequenceClassification(config).eval()


def words(text: str) -> dict[str, list[int]]:
    return {"input_ids": [WORDS.index(word) for word in text.split()] + [6]}


def test_an_encoder_decoder_classifies_texts(tmp_path: Path) -> None:
    net, texts = bart(), ["cat sat", "a cat on a", "on"]
    found = rs.collect(net, read_texts(net, words, texts), out=tmp_path)
    seen: list[torch.Tensor] = []
    net.classification_head.out_proj.register_forward_pre_hook(lambda _m, args: seen.append(args[0][0]))
    with torch.no_grad():
        logits = [net(input_ids=torch.tensor([words(text)["input_ids"]])).logits[0] for text in texts]
    torch.testing.assert_close(found.logits, torch.stack(logits), rtol=0, atol=0)
    torch.testing.assert_close(found.features, torch.stack(seen), rtol=0, atol=0)
    with pytest.raises(rs.ModelError, match="Passing input embeddings is currently not supported"):
        rs.jacobian_rank(net, read_texts(net, words, texts))


@pytest.mark.parametrize("make", [decoder, llama])
def test_the_features_of_a_decoder_are_those_of_the_token_it_classifies_by(make: Any, tmp_path: Path) -> None:
    """Also where a padded batch has another last token in every row."""
    net = make()
    net.config.pad_token_id = 0
    ids = torch.tensor([[1, 2, 3, 0, 0], [5, 6, 0, 0, 0], [1, 2, 3, 4, 5]])
    given = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    found = rs.collect(net, (given, torch.tensor([0, 1, 2])), out=tmp_path, cut_points=[])
    with torch.no_grad():
        out = net(**given, output_hidden_states=True)
    last = torch.tensor([2, 1, 4])
    torch.testing.assert_close(found.features, out.hidden_states[-1][torch.arange(3), last], rtol=0, atol=1e-6)
    torch.testing.assert_close(found.logits, out.logits, rtol=0, atol=1e-6)
    # the head makes the logits of the features: the same product, summed in another order
    torch.testing.assert_close(found.features @ net.score.weight.T, found.logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "GPT2ForTokenClassification"])
def test_logits_of_every_token_are_no_classification(kind: str, tmp_path: Path) -> None:
    net = getattr(transformers, kind)(decoder().config).eval()
    with pytest.raises(rs.ModelError, match=r"returns a tensor of shape \(1, 3, \d\); a collection needs logits"):
        rs.collect(net, read_texts(net, tokenizer(), ["the cat sat"]), out=tmp_path)


class Best(torch.nn.Module):
    """The position whose logits are largest: no rule that only knows last tokens finds it."""

    def __init__(self, ties: bool) -> None:
        super().__init__()
        self.body, self.head, self.ties = torch.nn.Linear(4, 6), torch.nn.Linear(6, 3, bias=False), ties

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.head(torch.tanh(self.body(x)) * (0.0 if self.ties else 1.0) + (x[..., :1] if self.ties else 0.0))
        return made.mean(1) if self.ties else made[torch.arange(len(x)), made.sum(2).argmax(1)]


def test_any_position_that_gives_the_logits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Best(ties=False).eval(), torch.randn(5, 7, 4)
    found = rs.collect(net, (x, torch.arange(5) % 3), out=tmp_path, cut_points=[])
    with torch.no_grad():
        rows = torch.tanh(net.body(x))
        place = net.head(rows).sum(2).argmax(1)
    assert len(set(place.tolist())) > 1
    torch.testing.assert_close(found.features, rows[torch.arange(5), place], rtol=0, atol=0)


def test_a_decoder_with_one_output(tmp_path: Path) -> None:
    """Two classes, the first with the logit 0."""
    config = decoder().config
    config.num_labels = 1
    torch.manual_seed(1)
    net = transformers.GPT2ForSequenceClassification(config).eval()
    found = rs.collect(net, read_texts(net, tokenizer(), TEXTS), out=tmp_path, cut_points=[])
    assert found.features.shape == (4, 8)
    assert found.logits.shape == (4, 2)
    torch.testing.assert_close(found.features @ net.score.weight[0], found.logits[:, 1], rtol=0, atol=1e-5)


def test_a_mean_over_positions_is_not_what_the_head_makes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.raises(rs.ModelError, match="the head 'head' is applied at 7 positions, and no position"):
        rs.collect(Best(ties=True).eval(), (torch.randn(5, 7, 4), torch.arange(5) % 3), out=tmp_path, cut_points=[])
