# ruff: noqa: C408, E402, SIM905 (timm needs preparing before its import; names and options read better this way)
"""Which architectures rankscope measures, and how: one small model of every timm module and many of Hugging Face's.

    python benchmarks/architectures.py                  # all, about 20 minutes on two cores; continues where it stopped
    python benchmarks/architectures.py --only swin vit  # models whose name holds one of these words, measured anew
    python benchmarks/architectures.py --list           # what would be measured

Weights are random (nothing is downloaded), with BatchNorm statistics from noise and zero-initialised branches opened:
the ranks mean nothing, whether the derivatives are right does not depend on them. Every model runs in a process of its
own with a time limit, so one that hangs or dies costs one row. Finished rows are kept in a record beside the table.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
import traceback
import warnings
from collections import Counter
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import torch

import rankscope as rs
import rankscope.jacobian
from rankscope._base.facts import FactKind
from rankscope.loading import calibrate_batchnorm, ensure_torchvision
from rankscope.loading._random import open_branches, seeded
from rankscope.views.sentences import sentence

ensure_torchvision()

import timm
import transformers
from timm.models import _registry

CERTIFICATES = {
    FactKind.PROBES: "float64",
    FactKind.SCALED_PROBES: "estimate",
    FactKind.NARROW_PROBES: "estimate",
    FactKind.NOT_IN_FLOAT64: "none",
    FactKind.NOT_CERTIFIED: "not asked for",
}

# The smallest model of every timm module that registers models, and a second family of the large modules.
TIMM = """
beit_base_patch16_224 halonet_h1 lambda_resnet26t botnet26t_256 mobileone_s1 repvgg_a0 cait_xxs24_224 coat_tiny
coat_lite_tiny convit_tiny convmixer_768_32 convnext_zepto_rms convnextv2_atto cpubone_nano crossvit_tiny_240 csatv2
cs3darknet_focus_s cspresnet50 cspnext_tiny davit_tiny deepseek_vit_412m deit_tiny_distilled_patch16_224 densenet121
dla46x_c dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0 mobilenetv2_035 tinynet_e mixnet_s
efficientnet_b0 efficientvim_m1 efficientvit_b0 efficientvit_m0 vit_tiny_patch16_dinov3_qkvb eva02_tiny_patch14_224
fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m_enc ghostnet_050 ghostnetv3_050 hardcorenas_b
hgnetv2_b0 hgnet_tiny hiera_tiny_224 sam2_hiera_tiny hrnet_w18_small iformer_t inception_next_atto inception_resnet_v2
inception_v3 inception_v4 lcnetv2_small levit_128s lowformer_b0 mambaout_femto maxvit_pico_rw_256 coatnet_pico_rw_224
poolformerv2_s12 caformer_s18 gmlp_ti16_224 gmixer_12_224 resmlp_12_224 mixer_s16_224 mobilenetv3_small_050 lcnet_035
fbnetv3_b mobilenetv5_base mobilevit_xxs mobilevitv2_050 mvitv2_tiny naflexvit_base_patch16_parfac_gap nasnetalarge
nest_tiny nextvit_small nf_regnet_b0 eca_nfnet_l0 pit_ti_224 pnasnet5large pvt_v2_b0 qwen3_vit_88m rdnet_tiny
regnetx_002 regnety_002 repghostnet_050 repvit_m1 res2next50 resnest14d resnet10t resnet18 seresnext26d_32x4d
resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs
swin_tiny_patch4_window7_224 swinv2_tiny_window16_256 swinv2_cr_tiny_384 tiny_vit_5m_224 tnt_s_legacy_patch16_224
tresnet_m twins_svt_small twins_pcpvt_small vgg11 visformer_tiny vit_tiny_patch16_224 flexivit_small
vit_tiny_r_s16_p8_224 vit_srelpos_small_patch16_224 samvit_base_patch16_224 vitamin_small_224 volo_d1_224
ese_vovnet19b_slim_dw vovnet39a xception xception41p xcit_nano_12_p8_224
""".split()

# Smallest sides are tried first; a model that refuses them all gets the size of its own configuration.
SIDES = (64, 96, 128, 160, 224)
# The smallest of its module is large: fewer of the same blocks.
OPTIONS: dict[str, dict[str, Any]] = {"deepseek_vit_412m": {"depth": 3}}

TEXT = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, vocab_size=99)
GROUPED = dict(TEXT, num_key_value_heads=2, max_position_embeddings=64)
VISION = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, image_size=32)
PATCHED = dict(VISION, patch_size=8)
# architecture → (class, options of the configuration, kind of input)
HUGGING_FACE: dict[str, tuple[str, dict[str, Any], str]] = {
    "albert": ("AutoModelForSequenceClassification", dict(TEXT, embedding_size=16), "tokens"),
    "bart": ("AutoModelForSeq2SeqLM", dict(vocab_size=99, d_model=32, encoder_layers=2, decoder_layers=2,
             encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64), "pairs"),
    "beit": ("AutoModelForImageClassification", PATCHED, "pixels"),
    "bert": ("AutoModelForSequenceClassification", TEXT, "tokens"),
    "bit": ("AutoModelForImageClassification", dict(embedding_size=16, hidden_sizes=[16, 32, 48, 64],
            depths=[1, 1, 2, 1], num_groups=4), "pixels64"),
    "bloom": ("AutoModelForCausalLM", dict(vocab_size=99, hidden_size=32, n_layer=3, n_head=4), "tokens"),
    "clip_vision_model": ("AutoModel", PATCHED, "pixels"),
    "convnext": ("AutoModelForImageClassification", dict(hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 2, 1]),
                 "pixels64"),
    "convnextv2": ("AutoModelForImageClassification", dict(hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 2, 1]),
                   "pixels64"),
    "deberta-v2": ("AutoModelForSequenceClassification", dict(TEXT, relative_attention=True,
                   pos_att_type=["c2p", "p2c"]), "tokens"),
    "deit": ("DeiTForImageClassification", PATCHED, "pixels"),
    "dinov2": ("AutoModelForImageClassification", dict(VISION, patch_size=8, mlp_ratio=2), "pixels"),
    "distilbert": ("AutoModelForSequenceClassification", dict(vocab_size=99, dim=32, n_layers=3, n_heads=4,
                   hidden_dim=64), "tokens"),
    "electra": ("AutoModelForSequenceClassification", dict(TEXT, embedding_size=16), "tokens"),
    "falcon": ("AutoModelForCausalLM", dict(TEXT), "tokens"),
    "gemma": ("AutoModelForCausalLM", dict(GROUPED, head_dim=8, pad_token_id=0), "tokens"),
    "gemma2": ("AutoModelForCausalLM", dict(GROUPED, head_dim=8, pad_token_id=0), "tokens"),
    "gpt2": ("AutoModelForCausalLM", dict(vocab_size=99, n_embd=32, n_layer=3, n_head=4, n_positions=64), "tokens"),
    "gpt_neo": ("AutoModelForCausalLM", dict(vocab_size=99, hidden_size=32, num_layers=2, num_heads=4,
                attention_types=[[["global", "local"], 1]], max_position_embeddings=64), "tokens"),
    "gpt_neox": ("AutoModelForCausalLM", TEXT, "tokens"),
    "gptj": ("AutoModelForCausalLM", dict(vocab_size=99, n_embd=32, n_layer=3, n_head=4, rotary_dim=4,
             n_positions=64), "tokens"),
    "hubert": ("AutoModel", dict(TEXT, conv_dim=(16, 16), conv_kernel=(10, 4), conv_stride=(5, 4),
               num_feat_extract_layers=2, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4), "waves"),
    "llama": ("AutoModelForCausalLM", GROUPED, "tokens"),
    "mamba": ("AutoModelForCausalLM", dict(vocab_size=99, hidden_size=32, num_hidden_layers=3, state_size=4),
              "tokens"),
    "mistral": ("AutoModelForCausalLM", GROUPED, "tokens"),
    "mixtral": ("AutoModelForCausalLM", dict(GROUPED, num_local_experts=4), "tokens"),
    "mobilevit": ("AutoModelForImageClassification", dict(hidden_sizes=[24, 32, 40], neck_hidden_sizes=[8, 16, 24, 32,
                  40, 48, 64], image_size=64), "pixels64"),
    "mpnet": ("AutoModelForSequenceClassification", TEXT, "tokens"),
    "opt": ("AutoModelForCausalLM", dict(vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
            ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64), "tokens"),
    "phi": ("AutoModelForCausalLM", GROUPED, "tokens"),
    "phi3": ("AutoModelForCausalLM", dict(GROUPED, pad_token_id=0), "tokens"),
    "poolformer": ("AutoModelForImageClassification", dict(hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 2, 1]),
                   "pixels64"),
    "qwen2": ("AutoModelForCausalLM", GROUPED, "tokens"),
    "qwen3": ("AutoModelForCausalLM", dict(GROUPED, head_dim=8), "tokens"),
    "regnet": ("AutoModelForImageClassification", dict(hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 2, 1],
               groups_width=8, embedding_size=16), "pixels64"),
    "resnet": ("AutoModelForImageClassification", dict(hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 2, 1],
               embedding_size=16), "pixels64"),
    "roberta": ("AutoModelForSequenceClassification", TEXT, "tokens"),
    "segformer": ("AutoModelForImageClassification", dict(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1],
                  num_attention_heads=[1, 2, 2, 4], mlp_ratios=[2, 2, 2, 2]), "pixels64"),
    "siglip_vision_model": ("AutoModel", PATCHED, "pixels"),
    "stablelm": ("AutoModelForCausalLM", GROUPED, "tokens"),
    "swin": ("AutoModelForImageClassification", dict(embed_dim=16, depths=[1, 2, 1], num_heads=[2, 2, 4],
             window_size=4, image_size=64, patch_size=4), "pixels64"),
    "swinv2": ("AutoModelForImageClassification", dict(embed_dim=16, depths=[1, 2, 1], num_heads=[2, 2, 4],
               window_size=4, image_size=64, patch_size=4), "pixels64"),
    "t5": ("AutoModelForSeq2SeqLM", dict(vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
           "pairs"),
    "vit": ("AutoModelForImageClassification", PATCHED, "pixels"),
    "vit_mae": ("AutoModel", dict(PATCHED, mask_ratio=0.0), "pixels"),
    "wav2vec2": ("AutoModelForAudioClassification", dict(TEXT, conv_dim=(16, 16), conv_kernel=(10, 4),
                 conv_stride=(5, 4), num_feat_extract_layers=2, num_conv_pos_embeddings=16,
                 num_conv_pos_embedding_groups=4, classifier_proj_size=16), "waves"),
    "whisper": ("AutoModelForAudioClassification", dict(vocab_size=99, d_model=32, encoder_layers=3, decoder_layers=1,
                encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64,
                max_source_positions=20, num_mel_bins=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                decoder_start_token_id=1, classifier_proj_size=16), "mels"),
}  # fmt: skip


def build_timm(name: str) -> tuple[torch.nn.Module, Any, str]:
    """The model at the smallest side that it runs at, one input, and that input's shape in words."""
    own = timm.get_pretrained_cfg(name)
    own_side = int(own.input_size[-1]) if own is not None else 224
    sides = [*(s for s in SIDES if s < own_side), own_side]
    reasons = []
    for side in sides:
        for options in ({"img_size": side}, {}) if side != own_side else ({},):
            try:
                with seeded(0):
                    model = timm.create_model(name, pretrained=False, **options, **OPTIONS.get(name, {})).eval()
                channels = int((model.pretrained_cfg or {}).get("input_size", (3,))[0])
                x = torch.randn((1, channels, side, side), generator=torch.Generator().manual_seed(1))
                with torch.no_grad():
                    out = model(x)
                if not bool(torch.isfinite(out).all()):
                    raise ValueError("the output is not finite")
            except Exception as error:  # any model's own refusal of a size or an option
                reasons.append(f"{side}: {first_line(error)}")
                continue
            return model, x, f"{channels}×{side}×{side}"
    raise RuntimeError(f"no size works: {reasons[-1]}")


def build_hugging_face(name: str) -> tuple[torch.nn.Module, Any, str]:
    kind, options, wants = HUGGING_FACE[name]
    config = transformers.AutoConfig.for_model(name, **options)
    extra = {"experts_implementation": "eager"} if name == "mixtral" else {}
    with seeded(0):
        builder = getattr(transformers, kind)
        model = (builder.from_config(config, **extra) if kind.startswith("Auto") else builder(config)).eval()
    generator = torch.Generator().manual_seed(1)
    if wants in ("tokens", "pairs"):
        ids = torch.randint(3, 99, (1, 8), generator=generator)
        batch: Any = {"input_ids": ids}
        if wants == "pairs":
            batch["decoder_input_ids"] = ids[:, :4]
        return model, batch, "8 tokens"
    if wants == "waves":
        return model, {"input_values": torch.randn((1, 800), generator=generator)}, "800 samples"
    if name == "vit_mae":
        # its random mask is drawn from this noise
        noise = torch.rand((1, 16), generator=generator)
        return model, {"pixel_values": torch.randn((1, 3, 32, 32), generator=generator), "noise": noise}, "3×32×32"
    if wants == "mels":
        return model, {"input_features": torch.randn((1, 16, 40), generator=generator)}, "16×40 mels"
    side = 64 if wants == "pixels64" else 32
    return model, {"pixel_values": torch.randn((1, 3, side, side), generator=generator)}, f"3×{side}×{side}"


def first_line(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}"[:300]


def measure(source: str, name: str) -> dict[str, Any]:
    """One row of the table."""
    torch.set_num_threads(1)
    model, inputs, shape = (build_timm if source == "timm" else build_hugging_face)(name)
    open_branches(model, seed=0)
    row: dict[str, Any] = {"input": shape, "parameters": sum(p.numel() for p in model.parameters())}
    if isinstance(inputs, torch.Tensor):
        noise = torch.randn((8, *inputs.shape[1:]), generator=torch.Generator().manual_seed(2))
        calibrate_batchnorm(model, noise)
    table = rs.layers(model, inputs)
    row["calls"], row["default"] = len(table), len(table.default)
    row["blocks"] = list(table.default)
    cut_points: Any = "blocks"
    if not table.default:
        # no true cut: measure what there is, so that the derivatives are still checked
        cut_points = [c.name for c in table if c.depends][-8:]
    images = "pixel" in shape or "×" in shape
    columns: Any = rs.Patch(2) if images and "mels" not in shape else rs.Sketch(8)
    started = time.perf_counter()
    profile = rs.jacobian_rank(model, inputs, cut_points=cut_points, columns=columns, progress=False, device="cpu")
    row["seconds"] = time.perf_counter() - started
    linearised = profile.method.kind is FactKind.LINEARISED
    summaries = [profile.summary(layer) for layer in profile.layers]
    row |= {
        "measured": len(profile.layers),
        "unmeasured": dict(profile.unmeasured),
        "method": "linearised" if linearised else profile.method["name"],
        "difference": profile.method["difference"] if linearised else None,
        "failed": [(fact["name"], fact.values.get("reason", sentence(fact))) for fact in profile.failed_methods],
        "certificate": CERTIFICATES[profile.certificate.kind],
        "adjoint": profile.adjoint_error,
        "ranks": [s["rank"]["max"] for s in summaries],
        "notes": [sentence(fact) for fact in profile.facts if fact.kind is not FactKind.CASTS_DOWN],
    }
    return row


def child(source: str, name: str, pipe: Any) -> None:
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    started = time.perf_counter()
    try:
        row = measure(source, name)
    except BaseException as error:
        row = {"error": first_line(error), "trace": traceback.format_exc()[-3000:]}
    row["wall"] = time.perf_counter() - started
    pipe.send(row)
    pipe.close()


def run_all(todo: list[tuple[str, str]], limit: float, workers: int, done: Any) -> None:
    """Every model in a process of its own, ``workers`` at a time, each killed after ``limit`` seconds."""
    fork = multiprocessing.get_context("fork")
    waiting, running = list(todo), {}
    while waiting or running:
        while waiting and len(running) < workers:
            source, name = waiting.pop(0)
            receive, send = fork.Pipe(duplex=False)
            process = fork.Process(target=child, args=(source, name, send))
            process.start()
            send.close()
            running[receive] = (source, name, process, time.monotonic())
        ready = wait(list(running), timeout=1.0)
        for pipe in list(running):
            source, name, process, since = running[pipe]
            late = time.monotonic() - since > limit
            if pipe not in ready and not late:
                continue
            if pipe in ready:
                try:
                    row = pipe.recv()
                except EOFError:
                    process.join()
                    row = {"error": f"the process died (exit code {process.exitcode})", "wall": 0.0}
            else:
                process.kill()
                row = {"error": f"no result within {limit:.0f} s", "wall": limit}
            process.join()
            pipe.close()
            del running[pipe]
            done(source, name, row)


def method_class(row: dict[str, Any]) -> str:
    if "error" in row:
        return "not measured"
    return row["method"]


def certificate_class(row: dict[str, Any]) -> str:
    return row.get("certificate", "–")


def note_of(row: dict[str, Any]) -> str:
    if "error" in row:
        return row["error"]
    failed: dict[str, list[str]] = {}
    for method, reason in row["failed"]:
        failed.setdefault(reason if len(reason) < 90 else reason[:90].rsplit(" ", 1)[0] + " …", []).append(method)
    notes = [f"{', '.join(methods)} failed: {reason}" for reason, methods in failed.items()]
    notes += [*(f"{k} not measured: {v}" for k, v in row["unmeasured"].items())]
    if not row["default"]:
        notes.append("no true cut; its last eight calls were measured")
    zero = sum(1 for r in row["ranks"] if r == 0)
    if zero:
        notes.append(f"rank 0 at {zero} cut points")
    notes += row["notes"]
    return "; ".join(notes)


def good(row: dict[str, Any]) -> bool:
    return "error" not in row and row["adjoint"] is not None and row["adjoint"] < 1e-4


def table_of(rows: dict[str, dict[str, Any]], source: str) -> list[str]:
    head = "module" if source == "timm" else "class"
    lines = [
        f"| model | {head} | input | cut points | method | certificate | seconds | adjoint error | fast path off by | "
        "note |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key in sorted(k for k in rows if k.startswith(f"{source}:")):
        row, name = rows[key], key.partition(":")[2]
        where = _registry._model_to_module.get(name, "?") if source == "timm" else HUGGING_FACE[name][0]
        if "error" in row:
            cells = ["–", "–", "not measured", "–", f"{row['wall']:.0f}", "–", "–"]
        else:
            adjoint = "–" if row["adjoint"] is None else f"{row['adjoint']:.0e}"
            gap = "–" if row["difference"] is None else f"{row['difference']:.0e}"
            gap = "0" if row["difference"] == 1e-16 else gap  # what the library writes for no difference at all
            cells = [row["input"], str(row["measured"]), method_class(row), certificate_class(row)]
            cells += [f"{row['seconds']:.1f}", adjoint, gap]
        note = note_of(row).replace("|", "\\|").replace("\n", " ")
        lines.append("| " + " | ".join([name, where, *cells, note]) + " |")
    return lines


def summary_of(rows: dict[str, dict[str, Any]], source: str) -> str:
    chosen = {k: r for k, r in rows.items() if k.startswith(f"{source}:")}
    measured = [r for r in chosen.values() if "error" not in r]
    kinds = Counter(method_class(r) for r in measured).most_common()
    exact = sum(1 for r in measured if good(r))
    title = "timm" if source == "timm" else "Hugging Face"
    by = ", ".join(f"{n} by {'the linearised network' if k == 'linearised' else k}" for k, n in kinds)
    text = f"**{title}: {len(measured)} of {len(chosen)} measured** ({by}); {exact} with an adjoint error below 1e-4"
    if source == "timm":
        modules = {_registry._model_to_module.get(k[5:]) for k, r in chosen.items() if "error" not in r}
        text += f"; {len(modules)} of timm's {len(_registry._module_to_models)} modules"
        missing = sorted(set(_registry._module_to_models) - modules)
        text += f" (without {', '.join(missing)})" if missing else ""
    return text + "."


def machine() -> str:
    name = platform.processor() or platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text()
        name = next(line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {os.cpu_count()} cores"


def page(rows: dict[str, dict[str, Any]]) -> str:
    seconds = sum(r["wall"] for r in rows.values())
    return "\n".join(
        [
            "# Coverage",
            "",
            "This page lists the architectures that rankscope was tested on, with the method of each. They are",
            "the smallest model of every timm module (large modules twice) and tiny configurations of Hugging Face's,",
            "at the smallest input that each takes. The weights are random, so the ranks have no meaning; whether the",
            "derivatives are right does not depend on the weights. Cut points are the default ones, and the columns",
            "are a 2×2 patch of an image or a sketch of 8 directions. Seconds are those of `rs.jacobian_rank` on one",
            "thread of a machine that did other work too. `benchmarks/architectures.py` writes this page.",
            "",
            f"- {summary_of(rows, 'timm')}",
            f"- {summary_of(rows, 'hf')}",
            f"- {machine()}, one thread per model; {seconds / 60:.0f} minutes of model time. "
            f"torch {torch.__version__}, timm {timm.__version__}, transformers {transformers.__version__}, "
            f"Python {platform.python_version()}.",
            "",
            "*Adjoint error*: forward mode against reverse mode, |⟨w, Jv⟩ − ⟨Jᵀw, v⟩| relative to its parts.",
            "*Fast path off by*: largest difference of the linearised network from the plain method (`vmap(jvp)`",
            "unless the note says why it failed) on one direction, relative to a cut point's largest entry; 0: none.",
            "*Certificate*: `float64` where float64 probes bound the error of every spectrum, `estimate` where the",
            "model itself casts to lower precision inside. *Note*: why faster methods failed, what was not measured.",
            "",
            "## timm",
            "",
            *table_of(rows, "timm"),
            "",
            "## Hugging Face",
            "",
            *table_of(rows, "hf"),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="models whose name holds one of these, anew")
    parser.add_argument("--out", type=Path, default=Path("docs/coverage.md"))
    parser.add_argument("--record", type=Path, default=Path("runs/coverage.jsonl"), help="finished rows")
    parser.add_argument("--fresh", action="store_true", help="measure finished models again")
    parser.add_argument("--timeout", type=float, default=120, help="seconds a model may take")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="print the models and stop")
    parser.add_argument("--verbose", action="store_true", help="print cut points and error traces")
    options = parser.parse_args()

    models = [*(("timm", n) for n in TIMM), *(("hf", n) for n in HUGGING_FACE)]
    if options.list:
        print("\n".join(f"{s}:{n}" for s, n in models))
        return
    rows: dict[str, dict[str, Any]] = {}
    if options.record.exists() and not options.fresh:
        for line in options.record.read_text().splitlines():
            entry = json.loads(line)
            rows[entry["key"]] = entry["row"]
    wanted = [(s, n) for s, n in models if not options.only or any(w in f"{s}:{n}" for w in options.only)]
    todo = [(s, n) for s, n in wanted if options.only or f"{s}:{n}" not in rows]
    options.record.parent.mkdir(parents=True, exist_ok=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.fresh:
        options.record.unlink(missing_ok=True)
    finished = 0

    def done(source: str, name: str, row: dict[str, Any]) -> None:
        nonlocal finished
        finished += 1
        key = f"{source}:{name}"
        rows[key] = row
        with options.record.open("a") as record:
            record.write(json.dumps({"key": key, "row": row}) + "\n")
        place = f"[{finished}/{len(todo)}]"
        print(f"{place} {key:<40} {row['wall']:6.1f} s  {method_class(row)}  {note_of(row)}", flush=True)
        if options.verbose:
            print("   ", row.get("trace") or (row["blocks"], row["ranks"]), flush=True)

    run_all(todo, options.timeout, options.workers, done)
    known = {f"{s}:{n}" for s, n in models}
    rows = {k: r for k, r in rows.items() if k in known}
    options.out.write_text(page(rows))
    for source in ("timm", "hf"):
        print(summary_of(rows, source).replace("**", ""))
    weak = [k for k, r in rows.items() if not good(r)]
    print(f"not measured, or adjoint error of 1e-4 or more: {', '.join(weak) or 'none'}")


if __name__ == "__main__":
    main()
