"""Arms of a comparison: from the command line, and checked before anything is trained."""

from typing import Any

import pytest

from pipeline.comparison.arms import Arm, build_arms, parse_arm, parse_vary
from pipeline.config import Config
from pipeline.errors import UserError


def arms(*texts: str, given: tuple[str, ...] = (), **config: Any) -> list[Arm]:
    """Return the arms of ``--vary`` and ``--arm`` texts."""
    varied = [parse_vary(text) for text in texts]
    return build_arms(Config.from_dict(config), [parse_arm(text) for text in given], varied)


def test_values_are_yaml_and_stored_as_the_configuration_stores_them() -> None:
    found = arms("train.lr=1e-2,0.1")
    assert found == [Arm("1e-2", {"train.lr": 0.01}), Arm("0.1", {"train.lr": 0.1})]
    sizes = arms("data.sizes=[],[128,192]")
    assert [arm.params["data.sizes"] for arm in sizes] == [[], [128, 192]]
    unset = arms("assign.topk=null,5", assign={"name": "sim_ota"})
    assert [arm.params["assign.topk"] for arm in unset] == [None, 5]


def test_several_fields_are_combined() -> None:
    found = arms("assign.name=atss,max_iou", "train.lr=0.01,0.1")
    assert [arm.name for arm in found] == [
        *("atss, lr=0.01", "atss, lr=0.1", "max_iou, lr=0.01", "max_iou, lr=0.1")
    ]
    same_end = arms("train.batch_size=4,8", "model.freeze_stages=0,1")
    assert same_end[0].name == "batch_size=4, freeze_stages=0"


def test_field_that_does_not_matter_in_a_combination_is_absent_from_it() -> None:
    found = arms("assign.name=max_iou,mutual_guidance", "assign.sigma=1.5,3.0")
    assert [(arm.name, arm.params.get("assign.sigma")) for arm in found] == [
        ("max_iou", None),
        ("mutual_guidance, sigma=1.5", 1.5),
        ("mutual_guidance, sigma=3.0", 3.0),
    ]


def test_arm_sets_several_fields_and_its_loss_follows_its_assigner() -> None:
    found = arms(
        given=("recipe: {}", "soft: {assign.name: mutual_guidance_soft, assign.topk: 9}"),
    )
    assert found[0] == Arm("recipe", {})
    assert found[1].params == {"assign.name": "mutual_guidance_soft", "assign.topk": 9}
    both = arms("train.lr=0.01,0.1", given=("a: {assign.name: atss}", "b: {}"))
    assert [arm.name for arm in both] == ["a, 0.01", "a, 0.1", "b, 0.01", "b, 0.1"]
    assert both[1].params == {"assign.name": "atss", "train.lr": 0.1}


@pytest.mark.parametrize(
    ("field", "value", "users"),
    [
        ("static_fraction", 0.2, ("mutual_guidance", "mutual_guidance_soft")),
        ("min_positives", 4, ("mutual_guidance", "mutual_guidance_soft")),
        ("spare_iou", 0.7, ("mutual_guidance", "mutual_guidance_soft")),
        ("centre_radius", 1.5, ("mutual_guidance_soft",)),
        ("scaled_targets", True, ("mutual_guidance_soft",)),
    ],
)
def test_switches_of_mutual_guidance_are_arms(
    field: str, value: Any, users: tuple[str, ...]
) -> None:
    off = Config().assign.model_dump()[field]
    texts = "null" if off is None else str(off).lower(), str(value).lower()
    names = "max_iou,mutual_guidance,mutual_guidance_soft"
    found = arms(f"assign.name={names}", f"assign.{field}={','.join(texts)}")
    values = {name: [] for name in names.split(",")}
    for arm in found:
        values[arm.params["assign.name"]].append(arm.params.get(f"assign.{field}"))
    for name in values:
        assert values[name] == ([off, value] if name in users else [None])
    with pytest.raises(UserError, match=f"{field}: not used by max_iou"):
        arms(given=("a: {}", f"b: {{assign.name: max_iou, assign.{field}: {texts[1]}}}"))


@pytest.mark.parametrize(
    ("varied", "given", "words"),
    [
        (["assign.nam=a,b"], [], "--vary assign.nam: .*no such field; did you mean assign.name"),
        (["assign.name=atss,nothing"], [], "arm 'nothing': assign.name: 'nothing' does not exist"),
        (["train.lr=0.1,-1"], [], "arm '-1': train.lr: got -1"),
        (["assign.name=atss"], [], "there is one arm only"),
        ([], [], "there is one arm only"),
        ([], ["a: {}"], r"there is one arm only \(a\)"),
        (["assign.name=atss,atss"], [], "arm 'atss' is given twice"),
        (["train.seed=0,1"], [], "give their number as --seeds"),
        (["train.patience=0,3"], [], "trained to the end of its schedule"),
        (["evaluate.nms_iou=0.5,0.6"], [], "it needs no training"),
        (["registry.name=a,b"], [], "no score depends on it"),
        (["assign.name"], [], "expected FIELD=VALUE,VALUE"),
        (["assign.name="], [], "expected FIELD=VALUE,VALUE"),
        (["assign.name=[a"], [], "not valid YAML"),
        (["assign.topk=5,9"], [], "not used by mutual_guidance; assigners that use it: "),
        (["train.lr=0.1,0.2", "train.lr=0.3,0.4"], [], "given twice"),
        ([], ["a: {train.lr: 0.1}", "a: {}"], "--arm a: the name is given twice"),
        ([], ["a: {assign.topk: 9}", "b: {}"], "--arm a: assign.topk: not used by mutual_guidance"),
        ([], ["a"], "expected 'NAME: {FIELD: VALUE, ...}'"),
        ([], ["a: 3"], "expected 'NAME: {FIELD: VALUE, ...}'"),
        ([], ["a: {x.y: 3}", "b: {}"], "--arm a: x.y: there is no such field"),
        (["train.lr=1,2"], ["a: {train.lr: 0.1}", "b: {}"], "is also varied"),
    ],
)
def test_mistake_is_one_line(varied: list[str], given: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        arms(*varied, given=tuple(given))
    assert "\n" not in str(caught.value)
