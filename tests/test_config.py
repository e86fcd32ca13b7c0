"""Settings from YAML: what is wrong is one line that names it."""

import pytest

from deepgalaxy.config import Config, read_yaml
from deepgalaxy.errors import ConfigError


class Part(Config):
    weight: float = 1.0
    shown: bool = False
    weights: dict[str, float] = {}


class Whole(Config):
    data: str | tuple[str, ...]
    n: int = 1
    sizes: tuple[float, ...] = ()
    seed: int | None = None
    part: Part = Part()
    other: Part | None = Part()


@pytest.mark.parametrize("text, message", [
    ("", "is empty; write its settings"),
    ("# nothing yet\n", "is empty; write its settings"),
    ("[1]", "expected a mapping of settings, got list"),
    ("data: a\nn: 2\nn: 3", "is not valid YAML: the key 'n' is there twice, again in line 3; keep one of them"),
    ("data: a\npart: {weight: 1, weight: 2}", "is not valid YAML: the key 'weight' is there twice"),
    ("data: a\npart:", "part: is empty; fill it, or leave it out"),
    ("data: a\nn:", "n: is empty"),
    ("data: a\npart: 3", "part: expected a mapping of settings, got 3"),
    ("data: 5", "data: Input should be a valid string or a valid tuple, got 5$"),
    ("data: {a: 1}", "data: Input should be a valid string or a valid tuple$"),
    ("data: 5\nn: x", "data: Input should .* got 5 .and 1 more"),
    ("n: 2", "'data' is missing"),
    ("data: a\npart: {wieght: 1}", "unknown key 'part.wieght'; allowed here: shown, weight, weights"),
    ("data: a\nn: true", "n: must not be true or false .*, got True"),
    ("data: yes", "data: must not be true or false .in YAML also yes"),
    ("data: a\npart: {weight: true}", "part.weight: must not be true or false"),
    ("data: a\nsizes: [1, true]", "sizes: must not be true or false"),
    ("data: a\npart: {weights: {a: false}}", "part.weights: must not be true or false"),
    ("data: a\nother: false", "other: must not be true or false .*; write null to leave it out"),
])
def test_a_mistake_is_one_line_that_names_file_and_key(tmp_path, text, message):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"^{path}: {message}") as caught:
        Whole.from_yaml(path)
    assert "\n" not in str(caught.value)


def test_null_and_truth_values_are_taken_where_they_mean_something(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("data: [a, b]\nother: null\nseed: null\nn: '3'\npart: {shown: yes, weights: {a: 1}}\n")
    settings = Whole.from_yaml(path)
    assert settings.other is None and settings.seed is None and settings.n == 3 and settings.part.shown is True
    assert Whole.from_json(settings.to_json()) == settings


def test_merged_keys_are_not_there_twice(tmp_path):
    path = tmp_path / "merged.yaml"
    path.write_text("x: {y: &m {<<: &b {a: 1, c: 5}, a: 2}}\ntop: {<<: *m, a: 3}\n")
    assert read_yaml(path)["top"] == {"a": 3, "c": 5}
