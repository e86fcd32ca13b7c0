"""The model card says what the files hold, and nothing that they do not."""

import copy
import json

import numpy as np
import pytest

from deepgalaxy.data.reader import Dataset
from deepgalaxy.inference.evaluate import evaluate_unseen
from deepgalaxy.labels import LABELS
from deepgalaxy.report.card import About, model_card


@pytest.fixture(scope="module")
def card(run, tiny_model, other_dataset, tmp_path_factory):
    """The card of the tiny model and the evaluation that it was made with, by the command line."""
    path = tmp_path_factory.mktemp("card") / "card.md"
    done = run("evaluate", "--model", tiny_model / "model.safetensors", "--data", other_dataset, "--card", path,
               "--json", "-")
    assert done.status == 0 and f"card: {path}" in done.err, done.err
    return path.read_text(), json.loads(done.out)


def test_card_has_every_figure_of_the_evaluation(card):
    text, result = card
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    for kind, title in (("clean", "clean"), ("realism", "realism"),
                        ("realism_without_scale", "realism, scale unknown")):
        for label in LABELS:
            # In the main range of times, then of all.
            found = [row for row in rows if row[:2] == [label.name, title]]
            for row, figures in zip(found, (table[kind][label.name] for table in (result, result["all_times"])),
                                    strict=True):
                assert row[2].split()[1:] == [label.unit]
                np.testing.assert_allclose(float(row[2].split()[0]), figures["median_abs_error"], rtol=6e-3)
                np.testing.assert_allclose(float(row[5].rstrip(" %")), 100 * figures["coverage68"], atol=0.051)
    assert sum(row[0].startswith("time ") for row in rows) == len(result["by"]["time"])
    assert f"with an AUROC of {result['familiarity']['auroc']:.3f}" in " ".join(text.split())


def test_card_names_weights_recipe_and_counts(card, predictor):
    text, result = card
    weights = predictor.weights
    assert text.startswith(f"# Model card: {weights.name} {weights.version}\n") and weights.sha256 in text
    n = len(weights.metadata["training_encounters"])
    assert f"Trained on {n} encounter{'s' if n > 1 else ''}, in" in " ".join(text.split())
    assert f"`unseen`: {result['n_encounters']} whole encounters" in text
    assert weights.model.config.backbone in text and "not calibrated" not in text
    assert all(len(line) <= 120 for line in text.splitlines() if not line.startswith("|") and "`" not in line)


def test_what_was_switched_off_stands_among_the_limits(predictor, other_dataset):
    weights = copy.copy(predictor.weights)
    weights.metadata = copy.deepcopy(weights.metadata)
    weights.metadata["training"].setdefault("loss", {})["labels"] = {"size_ratio": 0}
    del weights.metadata["temperatures"]
    result, _ = evaluate_unseen(weights, Dataset(other_dataset), n_images=16)
    text = model_card(weights, result, None, About(figures="One more figure.", limits=("One of its own.",)))
    limits = text[text.index("## Limits"):]
    assert "One more figure.\n\n## Limits" in text
    assert "not trained for size ratio" in limits and "not calibrated" in limits and "- One of its own." in limits
    assert "AUROC" not in text and "library of" not in text and "nearest library images" not in text


def test_encounters_may_have_a_hyphen_in_their_names(predictor, card):
    weights = copy.copy(predictor.weights)
    weights.metadata = {**weights.metadata, "validation_encounters": ["m12-c"],
                        "training_encounters": ["m12-a", "m12-b", "q05", "q05-single", "q05-chance"]}
    assert "Trained on 3 encounters" in (text := model_card(weights, card[1])) and "1 other was held out" in text


def test_one_is_not_many_and_stages_that_no_image_showed_are_limits(predictor, card):
    weights = copy.copy(predictor.weights)
    weights.metadata = {**copy.deepcopy(weights.metadata), "training_encounters": ["m12-a"],
                        "never_seen": ["stage: single", "stage: chance pair"]}
    weights.metadata["training"]["epochs"] = 1
    text = " ".join(model_card(weights, card[1]).split())
    assert " 1 epoch of " in text and "Trained on 1 encounter, in" in text
    assert "- No image of the training showed the stages single, chance pair: their probabilities mean nothing." in text


def test_only_unseen_encounters_make_a_card(run, tiny_model, other_dataset, tmp_path):
    done = run("evaluate", "--protocol", "paper", "--model", tiny_model / "model.safetensors", "--data", other_dataset,
               "--card", tmp_path / "card.md")
    assert done.status == 2 and len(done.err.splitlines()) == 1 and "card.md: a model card is made of" in done.err
    assert not (tmp_path / "card.md").exists()
