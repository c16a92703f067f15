"""Settings: the layers, what is refused and how it is said, and the registries that components come from."""

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from paths import ROOT

from cssr.config.loading import describe, from_dict, load_config, save_config, to_dict
from cssr.config.registry import Registry
from cssr.config.schedules import SCHEDULES
from cssr.config.schema import Config
from cssr.config.yaml_loader import Loader
from cssr.degradations import DEGRADATIONS
from cssr.losses import LOSSES
from cssr.models.seg import SEG
from cssr.models.sr import SR
from cssr.utils.annotations import Within

RECIPES = sorted((ROOT / "configs").glob("*.yaml"))


def recipe(directory: Path, text: str) -> Path:
    path = directory / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(*overrides: str, path: Path | None = None) -> str:
    """The one line with which settings are refused."""
    with pytest.raises(ValueError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


# ---- layers ----


def test_overrides_are_above_the_recipe_and_the_recipe_above_the_defaults(tmp_path):
    path = recipe(tmp_path, "train: {steps: 7, seed: 3}\noptim: {lr: 0.5}\n")
    config = load_config(path, ["train.steps=8", "train.log_every=2", "train.steps=9"])
    assert (config.train.steps, config.train.seed, config.train.log_every) == (9, 3, 2)
    assert config.optim.lr == 0.5 and config.train.batch_size == Config().train.batch_size


def test_nothing_given_is_the_defaults(tmp_path):
    assert load_config() == Config() == load_config(recipe(tmp_path, "# only a comment\n"))


@pytest.mark.parametrize(
    "text, value", [("1e-4", 1e-4), ("1E5", 1e5), ("2.e-3", 2e-3), (".5e1", 5.0), ("+1e2", 100.0), ("3", 3.0)]
)
def test_exponents_are_numbers_everywhere(tmp_path, text, value):
    """Plain YAML 1.1 reads 1e-4 as a word; in an untyped setting it would stay one."""
    path = recipe(tmp_path, f"optim: {{lr: {text}}}\nloss: {{beta: {text}}}")
    for config in (load_config(path), load_config(None, [f"optim.lr={text}", f"loss.beta={text}"])):
        assert config.optim.lr == config.loss.beta == value
        assert isinstance(config.optim.lr, float) and not isinstance(config.loss.beta, str)


def test_words_that_look_like_numbers_stay_words():
    assert load_config(None, ["train.run_dir=1e-4x"]).train.run_dir == "1e-4x"


TEXTS = ["out #2", "007", "1e3", "on", "yes", "010", "2024-01-01", "12:30:00", "1_000", "0x10", "a: b", "- x",
         "[draft]", "!x", "*x", "&x", "%x", "@x", "a${b", "${train.seed}", "true", "'quoted' x", "x: {", ".5",
         " x"]  # fmt: skip


@pytest.mark.parametrize("key", ["train.run_dir", "train.wandb", "data.train", "data.cache", "optim.optimizer"])
@pytest.mark.parametrize("text", TEXTS)
def test_a_string_is_taken_as_it_stands(key, text):
    group, name = key.split(".")
    if (key, text) != ("data.train", "[draft]"):  # a list of sets
        assert getattr(getattr(load_config(None, [f"{key}={text}"]), group), name) == text


@pytest.mark.parametrize("text", ["007", "1e3", "on", "010", "2024-01-01", "12:30:00", "0x10", "true", ".5"])
def test_so_it_is_in_a_recipe(tmp_path, text):
    path = recipe(tmp_path, f"data: {{train: {text}, val: {{{text}: 1}}}}\nimports: []\ntrain:\n  run_dir: {text}\n")
    path.write_text(path.read_text() + f"phases: [{{name: {text}}}]\n")
    config = load_config(path)
    assert (config.data.train, config.data.val, config.train.run_dir) == (text, {text: 1}, text)
    assert config.phases[0].name == text


def test_quotes_are_those_of_yaml():
    overrides = ["train.run_dir='a # b'", 'train.wandb="null"', "data.train='[a]'"]
    config = load_config(None, overrides)
    assert (config.train.run_dir, config.train.wandb, config.data.train) == ("a # b", "null", "[a]")


@pytest.mark.parametrize("text, number", [("010", 10), ("08", 8), ("+7", 7)])
def test_numbers_are_decimal(tmp_path, text, number):
    path = recipe(tmp_path, f"train: {{seed: {text}}}\nmodel: {{sr: {{stages: {text}}}}}\n")
    for config in (load_config(path), load_config(None, [f"train.seed={text}", f"model.sr.stages={text}"])):
        assert config.train.seed == config.model.sr["stages"] == number


def test_a_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe(tmp_path, "train: {seed: 5, run_dir: ~/recipe, init_from: ~}\n")
    path = tmp_path / "second.yaml"
    path.write_text("base: ~/recipe.yaml\ndata: {val: {~/a: 1}}\n")
    config = load_config(path, ["data.train=~/sets", "data.cache=~"])
    assert config.data.train == f"{tmp_path}/sets" and config.data.val == {f"{tmp_path}/a": 1}
    assert config.train.run_dir == f"{tmp_path}/recipe" and config.data.cache == str(tmp_path)
    assert config.train.seed == 5 and config.train.init_from is None


def test_an_override_may_hold_an_equals_sign():
    assert load_config(None, ["train.run_dir=runs/a=b"]).train.run_dir == "runs/a=b"


# ---- components ----


@pytest.mark.parametrize(
    "layer, expected",
    [
        ("{width: 8}", {"name": "dbpn", "stages": 4, "width": 8}),  # no name: the same component
        ("{name: dbpn, stages: 2}", {"name": "dbpn", "stages": 2}),  # the same name merges
        ("dbpn", {"name": "dbpn", "stages": 4}),
        ("{name: bicubic}", {"name": "bicubic"}),  # another name drops the old arguments
        ("{name: other, width: 3}", {"name": "other", "width": 3}),
        ("bicubic", {"name": "bicubic"}),
    ],
)
def test_naming_another_component_drops_the_old_arguments(tmp_path, layer, expected):
    path = recipe(tmp_path, "model: {sr: {stages: 4}}")
    assert load_config(path, [f"model.sr={layer}"]).model.sr == expected


def test_nested_components_merge_by_the_same_rule(tmp_path):
    path = recipe(tmp_path, "loss: {seg: {alpha: {name: staircase, every: 10, step: 0.1}}}")
    assert load_config(path, ["loss.seg.alpha.every=20"]).loss.seg["alpha"] == {
        "name": "staircase",
        "every": 20,
        "step": 0.1,
    }
    linear = load_config(path, ["loss.seg.alpha={name: linear, until: 5}"]).loss.seg["alpha"]
    assert linear == {"name": "linear", "until": 5}


def test_a_number_takes_the_place_of_a_schedule(tmp_path):
    path = recipe(tmp_path, "loss: {beta: {name: linear, until: 100}}")
    assert load_config(path, ["loss.beta=0.5"]).loss.beta == 0.5
    assert load_config(path, ["loss.beta.until=50"]).loss.beta == {"name": "linear", "until": 50}


@pytest.mark.parametrize("key", ["train", "val"])
def test_naming_other_sets_replaces_those_of_the_recipe(tmp_path, key):
    """Sets by weight are one value: to train on `c` is not to train on `a`, `b` and `c`."""
    path = recipe(tmp_path, f"data: {{{key}: {{a: 3, b: 1}}}}")
    assert getattr(load_config(path, [f"data.{key}={{c: 1}}"]).data, key) == {"c": 1}


def test_phases_are_replaced_as_a_whole(tmp_path):
    path = recipe(tmp_path, "phases: [{name: a, until: 10, lr: {sr: 0}}, {name: b}]")
    assert [phase.name for phase in load_config(path).phases] == ["a", "b"]
    (phase,) = load_config(path, ["phases=[{name: c}]"]).phases
    assert (phase.name, phase.until, phase.lr) == ("c", None, {})


# ---- refusals ----


@pytest.mark.parametrize(
    "override, named",
    [
        ("train.stesp=3", "train.stesp.*'steps'"),
        ("trian.steps=3", "trian.*'train'"),
        ("train.steps=many", "train.steps"),
        ("train.steps=1.5", "train.steps"),
        ("train.steps=", "train.steps"),
        ("train.steps=yes", "train.steps"),
        ("optim.lr=fast", "optim.lr"),
        ("model.normalize=batch", "model.normalize.*instance.*dataset.*none"),
        ("model.clip=sometimes", "model.clip.*eval"),
        ("model.sr=null", "model.sr"),
        ("model.sr=[dbpn]", "model.sr"),
        ("data=shards", "data"),
        ("phases=null", "phases"),
        ("phases=[{nam: a}]", r"phases\[0\].nam"),
        ("phases=[{lr: {sr: fast}}]", r"phases\[0\].lr.sr"),
        ("train.steps", "train.steps.*a.b=value"),
        ("=3", "a.b=value"),
        ("train.steps=[", "train.steps.*YAML"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(override, named):
    assert re.search(named, refused(override))


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize(
    "key",
    [
        "model.scale",
        "data.crop",
        "data.lanes",
        "data.shuffle_window",
        "train.steps",
        "train.batch_size",
        "train.log_every",
        "train.save_every",
        "train.keep",
        "eval.batch_size",
    ],
)
def test_sizes_are_positive(key, value):
    assert refused(f"{key}={value}").startswith(key)


@pytest.mark.parametrize("key", ["data.hflip", "data.vflip", "data.max_damaged"])
@pytest.mark.parametrize("value", ["-0.1", "1.1", ".nan", ".inf"])
def test_shares_are_between_0_and_1(key, value):
    assert refused(f"{key}={value}").startswith(key)


@pytest.mark.parametrize(
    "override",
    [
        "train.micro_batch=-2",
        "data.workers=-1",
        "data.resized_crop=[1,0.5]",
        "data.resized_crop=[0.5]",
        "data.resized_crop=[0.5,2]",
        "model.mean=[0.5]",
        "model.std=[0.1,0,0.1]",
        "optim.ema=2",
        "optim.ema=1",
        "optim.clip_norm=0",
        "optim.clip_norm=-1",
        "optim.clip_norm=.nan",
        "optim.warmup=-5",
        "optim.warmup_start=-1",
        "eval.seed=-1",
        "eval.limit=-1",
        "phases=[{until: -5},{}]",
        "phases=[{until: 0},{}]",
    ],
)
def test_values_that_no_run_can_use_are_refused_at_once(override):
    """Else they are found after the model is built, or never."""
    assert override.partition("=")[0].split("[")[0] in refused(override)


@pytest.mark.parametrize(
    "override",
    [
        "loss.beta=.nan",
        "loss.beta={name: linear, until: .inf}",
        "model.mean=[.nan,0,0]",
        "model.std=[.inf,1,1]",
        "loss.seg={name: boundary_combo, alpha: .nan}",
        "data.cache_gib=inf",
        "data.timeout=.inf",
        "optim.lr=.nan",
        "optim.lr=-1",
        "optim.weight_decay=-1",
        "optim.arguments={betas: [.nan, 1]}",
        "phases=[{lr: {sr: -1}}]",
        "train.steps=100000000000000000000000",
        "data.lanes=1000000",
        "train.batch_size=100000",
        "train.seed=18446744073709551616",
        "eval.seed=4294967296",
        "model.scale=1000",
        "loss.sr_times_seg=-1",
        "train.run_dir=",
        "train.run_dir=''",
    ],
)
def test_values_that_cannot_be_meant_are_refused_at_once(override):
    assert re.search(re.sub(r"\W.*", "", override), refused(override))


def test_tiles_too_small_for_their_overlap_are_refused_at_once():
    """The joint model's tiles overlap by 32 pixels: eval.tile=48 would end the run at its first validation."""
    assert "eval.tile" in refused("eval.tile=48")
    assert load_config(None, ["eval.tile=65"]).eval.tile == 65


@pytest.mark.parametrize("scale, crop, remedy", [(4, 90, 88), (2, 31, 30), (4, 3, 4)])
def test_a_crop_that_the_scale_does_not_divide(scale, crop, remedy):
    assert refused(f"model.scale={scale}", f"data.crop={crop}") == (
        f"data.crop={crop} is not a multiple of model.scale={scale}; try {remedy}"
    )


@pytest.mark.parametrize("scale, sr", [(1, "dbpn"), (1, "bicubic"), (4, "none")])
def test_scale_1_goes_with_no_super_resolution_alone(scale, sr):
    message = refused(f"model.scale={scale}", f"model.sr={sr}")
    assert f"model.sr={sr}" in message and f"model.scale={scale}" in message


def test_the_upper_bound_is_accepted():
    assert load_config(None, ["model.scale=1", "model.sr=none"]).model.sr == {"name": "none"}


@pytest.mark.parametrize(
    "phases", ["[]", "[{until: 5}]", "[{}, {}]", "[{until: 5}, {until: 5}, {}]", "[{until: 9}, {until: 5}, {}]"]
)
def test_phases_must_follow_each_other(phases):
    assert refused(f"phases={phases}").startswith("phases: ")


def aliases(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text, said",
    [
        ("train: {steps: 1, steps: 2}", "'steps' is there twice"),
        ("train: {steps: 1}\noptim: {}\ntrain: {seed: 1}", "'train' is there twice"),
        (aliases(9), "aliases come to more than"),
        ("train: &t {steps: *t}", "within"),
        ("a: " + "[" * 900 + "]" * 900, "nested more than"),
        ("train: {steps: !!python/object:os.system {}}", "YAML"),
        ("train: {run_dir: !!binary abcd}", "YAML"),
        ("train: {seed: " + "1" * 5000 + "}", "5000 digits is too large"),
        ("#" * (1 << 21), "more than"),
    ],
)
def test_yaml_that_cannot_be_meant_is_refused_at_once(tmp_path, text, said):
    assert said in refused(path=recipe(tmp_path, text))


@pytest.mark.parametrize("setting", ["optim.lr={}", "data.resized_crop=[{}, 1]", "model.sr.width=-{}"])
def test_a_whole_number_that_no_float_holds_is_refused(setting):
    text = setting.format("1" + 400 * "0")
    message = refused(text)
    assert message.startswith(f"override '{text}': ") and "digits is too large to be meant" in message
    values = to_dict(Config())
    values["optim"]["lr"] = 10**400  # as JSON may hold it
    with pytest.raises(ValueError, match="config: it holds a number that is too large to be meant"):
        from_dict(values)


@pytest.mark.parametrize("override", ["train={steps: 1, steps: 2}", "model.sr={name: dbpn, a: 1, a: 2}"])
def test_no_key_is_given_twice(override):
    assert "there twice" in refused(override)


def test_a_long_chain_of_bases_is_refused(tmp_path):
    for n in range(200):
        (tmp_path / f"{n}.yaml").write_text(f"base: {n + 1}.yaml\n")
    assert "more than" in refused(path=tmp_path / "0.yaml")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_recipe_with_a_byte_order_mark_is_read(tmp_path, encoding):
    path = tmp_path / "recipe.yaml"
    path.write_text("# Wände\ntrain: {steps: 7}\n", encoding=encoding)
    assert load_config(path).train.steps == 7


@pytest.mark.parametrize(
    "text", ["train: [", "a: b: c", "\ttrain: 1", "- train", "word", "3", "train: {steps: 1}\n\x07", "caf\udce9: 1"]
)
def test_a_recipe_that_is_no_mapping_is_named(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert str(path) in refused(path=path)


def test_a_missing_recipe_is_named(tmp_path):
    assert str(tmp_path / "no.yaml") in refused(path=tmp_path / "no.yaml")
    assert str(tmp_path) in refused(path=tmp_path)


# ---- out again ----


def test_saved_settings_load_as_they_were(tmp_path):
    config = load_config(
        None,
        [
            "optim.lr=1e-7",
            "data.train={a: 3, b: 1}",
            "loss.beta={name: linear, until: 9}",
            "phases=[{name: sr, until: 4, lr: {seg: 0}}, {}]",
            "data.resized_crop=[0.5,1]",
        ],
    )
    save_config(config, tmp_path / "c.yaml")
    assert load_config(tmp_path / "c.yaml") == config == from_dict(to_dict(config))


@pytest.mark.parametrize("text", ["1e5", "1E-3", "007", "null", "true", "2024-01-01", "a: b", "${x"])
def test_words_are_saved_as_words(tmp_path, text):
    """A run directory called 1e5 is not the number 100000 when its settings are read again."""
    config = Config()
    config.train.wandb = text
    save_config(config, tmp_path / "c.yaml")
    assert yaml.load((tmp_path / "c.yaml").read_text(), Loader=Loader)["train"]["wandb"] == text


def leaves(cls: type) -> list[str]:
    nested = [f.type for f in dataclasses.fields(cls) if dataclasses.is_dataclass(f.type)]
    return [f.name for f in dataclasses.fields(cls) if not dataclasses.is_dataclass(f.type)] + [
        name for inner in nested for name in leaves(inner)
    ]


def test_every_setting_is_described_with_its_meaning():
    lines = describe().splitlines()
    settings = [line for line in lines if not line.endswith(":")]
    assert sorted(line.split(":")[0].strip() for line in settings) == sorted(leaves(Config))
    assert [line for line in settings if not re.search(r" # \w.{3}|# \[low", line)] == []


def test_the_description_is_yaml_of_the_defaults():
    assert from_dict(yaml.safe_load(describe())) == Config()


# ---- recipes ----


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_load(path):
    assert load_config(path) != Config()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_short_and_begin_with_what_they_are(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 50
    assert lines[0].startswith("# ") and len(lines[0]) > 10


def test_there_are_recipes():
    assert RECIPES


# ---- registry ----


@pytest.mark.parametrize(
    "component, said",
    [
        ({"name": "hammer", "weight": "abc"}, "tool 'hammer': weight must be a whole number, got 'abc'"),
        ({"name": "hammer", "weight": None}, "got None"),
        ({"name": "hammer", "weight": True}, "got True"),
        ({"name": "hammer", "weight": 1.5}, "got 1.5"),
        ({"name": "drill", "sizes": 3}, "sizes must be a list, each a whole number of 1 to 9, got 3"),
        ({"name": "drill", "sizes": [1, 10]}, r"got \[1, 10\]"),
        ({"name": "drill", "speed": float("nan")}, "speed must be a number or null, got nan"),
        ({"name": "drill", "way": "left"}, "way must be in or out, got 'left'"),
        ({"name": "drill", "more": [1]}, r"more must be a mapping or null, got \[1\]"),
        ({"name": "saw", "teet": 3}, r"does not take 'teet' \(did you mean teeth\?\)"),
        ({"name": ["hammer"]}, "the name of a tool is a word"),
    ],
)
def test_arguments_are_checked_against_the_signature(tools, component, said):
    @tools.register
    def drill(
        sizes: Sequence[Annotated[int, Within(1, 9)]] = (1,),
        speed: float | None = None,
        way: Literal["in", "out"] = "in",
        more: Mapping[str, Any] | None = None,
    ):
        return sizes, speed, way, more

    with pytest.raises(ValueError, match=said):
        tools.build(component)
    whole = {"name": "drill", "sizes": [1, 9], "speed": 2, "way": "out", "more": {"a": [1]}}
    assert tools.build(whole) == ([1, 9], 2, "out", {"a": [1]})


@pytest.mark.parametrize(
    "kind, arguments",
    [
        ("SR", {"stages": "abc"}),
        ("SR", {"stages": None}),
        ("SR", {"width": 0}),
        ("SR", {"width": 10**6}),
        ("SEG", {"encoder": 34}),
        ("SEG", {"encoder": None}),
        ("DEGRADATIONS", {"size": 1001}),
        ("DEGRADATIONS", {"sigma": "wide"}),
        ("LOSSES", {"alpha": 2}),
        ("LOSSES", {"alpha": {"name": "linear", "until": 10, "end": -1}}),
        ("LOSSES", {"alpha": [1]}),
        ("LOSSES", {"aux_weight": -1}),
        ("SCHEDULES", {"at": 5}),
        ("SCHEDULES", {"at": [-5]}),
        ("SCHEDULES", {"at": [5] * 1001}),
        ("SEG", {"encoder_args": {"channels": [[8] * 40] * 40}}),
    ],
)
def test_so_it_is_in_every_registry(kind, arguments):
    names = {"SR": "dbpn", "SEG": "unet", "DEGRADATIONS": "gaussian", "LOSSES": "boundary_combo", "SCHEDULES": "steps"}
    registry = {"SR": SR, "SEG": SEG, "DEGRADATIONS": DEGRADATIONS, "LOSSES": LOSSES, "SCHEDULES": SCHEDULES}[kind]
    with pytest.raises(ValueError, match=next(iter(arguments))) as caught:
        registry.build({"name": names[kind], **arguments}, scale=4)
    assert "\n" not in str(caught.value)


@pytest.fixture
def tools():
    registry = Registry("tool")

    @registry.register
    def hammer(weight: int, scale: int = 1):
        return "hammer", weight, scale

    @registry.register
    def saw(*, teeth: int = 3, **rest):
        return "saw", teeth, rest

    return registry


def test_a_name_is_registered_once(tools):
    def hammer():
        pass

    with pytest.raises(AssertionError, match="'hammer' is registered twice"):
        tools.register(hammer)
    assert tools.names() == ["hammer", "saw"]


def test_context_is_passed_only_where_the_signature_takes_it(tools):
    assert tools.build({"name": "hammer", "weight": 2}, scale=4, colour="red") == ("hammer", 2, 4)
    assert tools.build("saw", scale=4) == ("saw", 3, {})


def test_building_leaves_the_component_as_it_was(tools):
    component = {"name": "hammer", "weight": 2}
    tools.build(component)
    assert component == {"name": "hammer", "weight": 2}


@pytest.mark.parametrize(
    "component, message",
    [
        ("hamer", "unknown tool 'hamer' .did you mean hammer"),
        ("zzz", "unknown tool 'zzz' .choose from hammer, saw"),
        ({"weight": 2}, "a tool needs a name: one of hammer, saw"),
        ({"name": "hammer"}, "tool 'hammer' needs weight"),
        ({"name": "hammer", "wieght": 2}, "does not take 'wieght' .did you mean weight.*takes: weight: a whole number"),
        ({"name": "hammer", "weight": 2, "scale": 3}, "does not take 'scale'"),  # the caller's, not the user's
        ({"name": 3}, "the name of a tool is a word, got 3"),
    ],
)
def test_a_mistake_is_answered_with_what_to_type(tools, component, message):
    with pytest.raises(ValueError, match=message) as caught:
        tools.build(component, scale=4)
    assert "\n" not in str(caught.value)


def test_open_ended_arguments_reach_the_function(tools):
    assert tools.build({"name": "saw", "teeth": 9, "rust": True}) == ("saw", 9, {"rust": True})


# ---- a recipe over another ----


def test_a_recipe_differs_from_its_base(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a.yaml").write_text("model: {scale: 2, sr: {name: dbpn, stages: 4}}\ntrain: {steps: 7}")
    (tmp_path / "b.yaml").write_text("base: below/a.yaml\nmodel: {sr: {width: 8}}\nloss: {beta: 0.1}")
    config = load_config(recipe(tmp_path, "base: b.yaml\ntrain: {seed: 3}"), ["train.steps=9"])
    assert config.model.sr == {"name": "dbpn", "stages": 4, "width": 8} and config.model.scale == 2
    assert (config.train.steps, config.train.seed, config.loss.beta) == (9, 3, 0.1)


@pytest.mark.parametrize(
    "text, message",
    [
        ("base: gone.yaml", "config: no recipe at .*gone.yaml"),
        ("base: recipe.yaml", "config: .*recipe.yaml is its own base: recipe.yaml -> recipe.yaml"),
        ("base: [a, b]", r"config: base in .*recipe.yaml must be the path of a recipe, got \['a', 'b'\]"),
    ],
)
def test_bases_that_cannot_be(tmp_path, text, message):
    assert re.search(message, refused(path=recipe(tmp_path, text)))


# ---- modules of the user's ----


def test_a_recipe_imports_a_module_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "own_parts_for_a_test.py").write_text(
        "from cssr.models.sr import SR\n\n@SR.register\ndef own_sr_for_a_test(scale):\n    return None\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    config = load_config(recipe(tmp_path, "imports: [own_parts_for_a_test]\nmodel: {sr: own_sr_for_a_test}"))
    from cssr.models.sr import SR

    assert config.model.sr == {"name": "own_sr_for_a_test"} and SR.build(config.model.sr, scale=4) is None


def test_a_module_that_is_not_there():
    assert "imports: no_such_module cannot be imported from" in refused("imports=[no_such_module]")


def test_a_module_that_fails(tmp_path, monkeypatch):
    (tmp_path / "failing_for_a_test.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    assert refused("imports=[failing_for_a_test]").endswith("ZeroDivisionError: division by zero")


def test_a_recipe_that_is_a_link_to_itself(tmp_path):
    (tmp_path / "a.yaml").symlink_to("a.yaml")
    with pytest.raises(ValueError, match="config: no recipe at .*a.yaml"):
        load_config(tmp_path / "a.yaml")


def test_an_error_does_not_repeat_all_that_it_was_given():
    with pytest.raises(ValueError, match="weight needs two numbers") as caught:
        LOSSES.build({"name": "bce", "weight": [1] * 900})
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "group, name, value, said",
    [
        ("optim", "arguments", [1], "optim.arguments must be a mapping, got"),
        ("phases", 0, {"lr": {"sr": [1]}}, r"joint.lr.sr must be 0 to 1e\+06, got \[1\]"),
        ("model", "sr", ["dbpn"], "model.sr must be a mapping, got"),
        ("loss", "extra", {"a": 1}, "loss.extra must be a list, got"),
        ("model", "mean", 5, "model.mean must be a list, got 5"),
        ("data", "suffixes", "jpg", "data.suffixes must be a mapping, got jpg"),
        ("phases", 0, {"lr": [1]}, r"phases.0..lr must be a mapping, got"),
    ],
)
def test_lists_and_mappings_in_place_of_each_other_are_named(group, name, value, said):
    values = to_dict(Config())
    values[group][name] = value
    with pytest.raises(ValueError, match=said):
        from_dict(values)
