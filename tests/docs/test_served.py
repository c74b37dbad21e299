"""What the page says that serving costs is what the report beside it says."""

from __future__ import annotations

import json
from pathlib import Path

from loadtest.bench_served import markdown

PAGE = Path("docs/models.md")
FIGURES = Path("docs/figures")
CHEAP = ("Shared bottom", "PLATE", "EPNet", "MLoRA", "STAR", "APG", "MI-DPG")
DEAR = ("PLE", "M3oE", "OMoE", "MMoE", "SAR-Net", "M2M", "AITM")


def test_the_table_of_serving_is_its_reports() -> None:
    assert markdown(json.loads((FIGURES / "bench-served.json").read_text())) in PAGE.read_text()


def test_every_model_of_the_comparison_is_served_in_the_size_that_it_has_there() -> None:
    served = json.loads((FIGURES / "bench-served.json").read_text())
    compared = json.loads((FIGURES / "results.json").read_text())["douban"]["rows"]
    assert served["models"].keys() == compared.keys()
    assert served["left_out"] == {}
    for name, row in compared.items():
        assert served["models"][name]["parameters"] == row["parameters"]
        assert served["models"][name]["parameters_of_domain"] == row["parameters_of_domain"]
        assert served["models"][name]["pack_bytes"] == 4 * row["parameters_of_domain"]


def test_what_the_text_says_of_serving_is_in_the_report() -> None:
    report = json.loads((FIGURES / "bench-served.json").read_text())
    page = " ".join(PAGE.read_text().split())
    found = {name: model["candidates"]["500"] for name, model in report["models"].items()}
    ratio = {name: f"{each['ratio']:.2f}" for name, each in found.items()}
    mix = found["Mix"]
    assert all(found[name]["ratio"] < 2 for name in CHEAP)
    assert all(found["PLE"]["ratio"] <= found[name]["ratio"] <= found["AITM"]["ratio"] for name in DEAR)
    assert report["size"]["rows"] == 512
    for text in (
        f"{report['size']['rounds']} rounds of all models in turn",
        f"shared bottom takes {ratio['Shared bottom']} times its time",
        f"PLATE {ratio['PLATE, tune L']} to {ratio['PLATE']}, EPNet {ratio['EPNet']}, MLoRA {ratio['MLoRA']}",
        f"STAR {ratio['STAR']}, APG {ratio['APG']} and MI-DPG {ratio['MI-DPG']}.",
        f"cost {ratio['PLE']} to {ratio['AITM']} times as much",
        f"{ratio['Single']} for a single model, {ratio['Fine-tune all']} for a fine-tuned one",
        f"AutoInt {ratio['AutoInt, fine-tuned']} fine-tuned and {ratio['AutoInt, PLATE']} under PLATE",
        f"xDeepFM {ratio['xDeepFM, fine-tuned']} and {ratio['xDeepFM, PLATE']}",
        f"DCN-V2 {ratio['DCNv2, PLATE']} with prompts, {ratio['DCNv2, fine-tuned']} without",
        f"Of Mix's {mix['us']:.0f} us at 500 candidates the engine has {mix['engine_us']:.0f}.",
    ):
        assert text in page, text
