import pytest
import yaml

from biflow.config import RunConfig, load_recipe, parse_config, recipe_names, recipe_text, smoke, to_yaml
from biflow.errors import InputError


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_begins_with_source_and_command(name):
    assert isinstance(load_recipe(name), RunConfig)
    head = [line for line in recipe_text(name).splitlines() if line.startswith("#")]
    assert any(line.startswith("# Source:") for line in head)
    assert any(line.startswith(f"# Command: biflow train {name}") for line in head)


@pytest.mark.parametrize("name", recipe_names())
def test_config_survives_yaml(name):
    config = load_recipe(name)
    assert parse_config(RunConfig, to_yaml(config), origin="test") == config


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_complete(name):
    assert yaml.safe_load(recipe_text(name)) == yaml.safe_load(to_yaml(load_recipe(name)))


def test_overrides_reach_nested_keys_with_their_types():
    config = load_recipe("biflow_digits", ["fit_flow.learning_rate=1e-3", "model.flow.width=96", "stage=flow"])
    assert config.fit_flow.learning_rate == 1e-3
    assert config.model.flow.width == 96
    assert config.stage == "flow"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.flw.width=8", r"Unknown key 'model.flw'; did you mean flow\?"),
        ("fit_flow.step=8", r"Unknown key 'fit_flow.step'; did you mean steps"),
        ("fit_flow.steps=many", r"fit_flow.steps: input should be a valid integer.*; got 'many'"),
        ("fit_flow.steps=0", r"fit_flow.steps: input should be greater than 0; got 0"),
        ("model.flow.width=50", r"multiple of head_width 32; got 50. Nearest valid width: 64"),
        ("model.patch_size=3", r"multiple of patch_size 3; got 8. Nearest valid size: 9"),
        ("stage=reverze", r"stage: input should be 'both' or 'flow'; got 'reverze'"),
        ("seed.value=3", r"Expected a key that has sub-keys; got 'seed'"),
        ("seed=true", r"seed: Expected a number or a word; got true"),
        ("seed=[1", r"Expected valid YAML in the override 'seed=\[1'"),
        ("fit_flow.learning_rate=.inf", r"fit_flow.learning_rate: input should be a finite number"),
        ("fit_flow.betas=[0.9, 1.5]", r"fit_flow.betas.1: input should be less than 1"),
        ("model.flow=3", r"model.flow: expected keys of its own; got 3"),
        ("steps", r"form key.sub=value; got 'steps'"),
        ("model.reverse=null", r"Expected model.reverse for stage 'both'"),
    ],
)
def test_bad_overrides_are_one_sentence_that_helps(override, message):
    with pytest.raises(InputError, match=message) as caught:
        load_recipe("biflow_digits", [override])
    assert "\n" not in str(caught.value)


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(InputError, match="did you mean biflow_digits"):
        load_recipe("biflow_digit")


def test_unknown_key_in_a_file_names_the_nearest(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(recipe_text("biflow_digits").replace("noise_std", "noise_sdt"))
    with pytest.raises(InputError, match=r"unknown key 'model.noise_sdt'; did you mean noise_std\?"):
        load_recipe(str(path))


@pytest.mark.parametrize("text", ["", "just words", "a: [1, 2", "- 1\n- 2"])
def test_files_that_are_no_config_are_refused(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError):
        load_recipe(str(path))


def test_smoke_keeps_the_model_and_shrinks_the_training():
    config = load_recipe("biflow_digits")
    assert smoke(config).model == config.model
    assert smoke(config).fit_flow.steps < config.fit_flow.steps
