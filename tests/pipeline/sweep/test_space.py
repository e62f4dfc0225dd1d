"""The search space: checked against the configuration before a trial starts."""

from typing import Any

import optuna
import pytest

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.sweep.domain import Domain
from pipeline.sweep.space import SearchSpace

ASSIGNERS = {"choice": ["mutual_guidance", "mutual_guidance_soft", "max_iou"]}


def space(fields: dict[str, Any], **config: Any) -> SearchSpace:
    return SearchSpace(Config.from_dict({"sweep": {"space": fields}, **config}))


def drawn(space: SearchSpace, count: int = 60) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [space.suggest(study.ask()) for _ in range(count)]


def test_every_kind_draws_values_of_its_domain() -> None:
    searched = space(
        {
            "assign.pos_threshold": {"uniform": [0.4, 0.6], "step": 0.05},
            "train.lr": {"loguniform": [0.001, 0.1]},
            "train.batch_size": {"int": [2, 4]},
            "data.sizes": {"choice": [[], [128, 192]]},
            "model.neck": {"grid": ["fssd", "retinanet"]},
        }
    )
    points = drawn(searched)
    assert {round(p["assign.pos_threshold"], 9) for p in points} == {0.4, 0.45, 0.5, 0.55, 0.6}
    assert all(0.001 <= p["train.lr"] <= 0.1 for p in points)
    assert {p["train.batch_size"] for p in points} == {2, 3, 4}  # the upper end is included
    assert [] in [p["data.sizes"] for p in points] and [128, 192] in [
        p["data.sizes"] for p in points
    ]
    assert {p["model.neck"] for p in points} == {"fssd", "retinanet"}
    assert all(value in searched.domains[f] for point in points for f, value in point.items())


def test_options_are_only_searched_with_assigners_that_use_them() -> None:
    points = drawn(
        space(
            {
                "assign.topk": {"int": [5, 20]},
                "assign.sigma": {"uniform": [1.5, 4.0]},
                "assign.classify_to_localize": {"choice": [True, False]},
                "assign.name": ASSIGNERS,
            }
        )
    )
    for point in points:
        name, guided = point["assign.name"], point.get("assign.classify_to_localize")
        assert ("assign.topk" in point) == (name == "mutual_guidance_soft")
        assert ("assign.sigma" in point) == (name != "max_iou" and guided is True)
        assert (guided is None) == (name == "max_iou")


def test_momentum_is_only_searched_with_sgd() -> None:
    fields = {"train.momentum": {"uniform": [0.5, 0.9]}}
    points = drawn(space({**fields, "train.optimizer": {"choice": ["sgd", "adamw"]}}))
    assert {p["train.optimizer"] for p in points} == {"sgd", "adamw"}
    assert all(("train.momentum" in p) == (p["train.optimizer"] == "sgd") for p in points)


def test_closing_of_mosaics_is_only_searched_where_there_are_any() -> None:
    closing = {"data.close_mosaic": {"choice": [0.1, 0.3]}}
    for point in drawn(space({**closing, "data.mosaic": {"choice": [0.0, 0.5]}})):
        assert ("data.close_mosaic" in point) == (point["data.mosaic"] > 0)
    assert all("data.close_mosaic" in p for p in drawn(space(closing, data={"mixup": 0.5})))


def test_conditions_are_those_of_the_recipe() -> None:
    soft = {"when": {"assign.name": "mutual_guidance_soft"}}
    searched = space({"assign.sigma": {"uniform": [1.5, 4.0], **soft}, "assign.name": ASSIGNERS})
    for point in drawn(searched):
        assert ("assign.sigma" in point) == (point["assign.name"] == "mutual_guidance_soft")


def test_loss_options_depend_on_the_loss_that_follows_the_assigner() -> None:
    for point in drawn(space({"loss.poly": {"uniform": [0, 2]}, "assign.name": ASSIGNERS})):
        assert ("loss.poly" in point) == (point["assign.name"] == "mutual_guidance_soft")


def test_combinations_of_a_grid_are_all_and_each_once() -> None:
    searched = space(
        {
            "assign.name": {"choice": ["max_iou", "mutual_guidance"]},
            "assign.sigma": {"uniform": [1.5, 2.5], "step": 0.5},
        }
    )
    assert list(searched.combinations()) == [
        {"assign.name": "max_iou"},
        *({"assign.name": "mutual_guidance", "assign.sigma": s} for s in (1.5, 2.0, 2.5)),
    ]
    with pytest.raises(UserError, match=r"train\.lr: the searcher grid needs a list, or a range"):
        space({"train.lr": {"uniform": [0.1, 0.2]}}).check_finite()


def test_starts_are_the_valid_combinations_of_backbone_and_weights() -> None:
    searched = space(
        {
            "model.backbone": {"choice": ["slim", "resnet18"]},
            "model.init": {"choice": [None, "imagenet"], "when": {"train.optimizer": "adamw"}},
            "train.optimizer": {"choice": ["sgd", "adamw"]},
            "train.lr": {"uniform": [0.01, 0.1]},
        }
    )
    found = [
        tuple(point.get(f"model.{name}", "") for name in ("backbone", "init"))
        for point in searched.starts()
    ]
    plain = [("slim", ""), ("resnet18", "")]  # with sgd
    given = [("slim", None), ("resnet18", None), ("resnet18", "imagenet")]
    assert sorted(found, key=str) == sorted([*plain, *given], key=str)
    assert list(space({"train.lr": {"uniform": [0.01, 0.1]}}).starts()) == [{}]


def test_thresholds_are_searched_together_within_their_order() -> None:
    searched = space(
        {
            "assign.pos_threshold": {"grid": [0.3, 0.5]},
            "assign.ignore_threshold": {"grid": [0.2, 0.4]},
        }
    )
    assert {tuple(sorted(point.values())) for point in searched.combinations()} == {
        (0.2, 0.3),
        (0.2, 0.5),
        (0.4, 0.5),
    }


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "sweep.space is empty"),
        ({"assign.sigm": {"uniform": [1, 2]}}, r"no such field; did you mean assign\.sigma"),
        ({"sigma": {"uniform": [1, 2]}}, "sigma: there is no such field"),
        ({"sweep.trials": {"choice": [1]}}, "a sweep cannot search itself"),
        ({"registry.score_threshold": {"uniform": [0, 1]}}, "no score depends on it"),
        ({"evaluate.nms_iou": {"uniform": [0, 1]}}, "it needs no training"),
        ({"train.seed": {"int": [0, 9]}}, "the best of several seeds is luck"),
        ({"data.val": {"choice": ["a", "b"]}}, "all trials are compared on one set"),
        ({"assign.sigma": {"normal": [1, 2]}}, "expected one of choice, grid, uniform"),
        ({"assign.topk": {"randint": [1, 2]}}, "use int, whose upper end is included"),
        ({"assign.sigma": {"uniform": [2, 3], "choice": [2]}}, "expected one of"),
        ({"assign.sigma": {"uniform": [2]}}, r"uniform takes \[low, high\], got \[2\]"),
        ({"assign.sigma": {"uniform": [3, 2]}}, r"\[3, 2\] is empty or reversed"),
        ({"assign.sigma": {"uniform": [2, "x"]}}, r"uniform takes numbers: \[2, 'x'\]"),
        ({"assign.sigma": {"uniform": [1.5, 2], "step": 0.3}}, "step 0.3 does not divide"),
        ({"train.lr": {"loguniform": [0, 1]}}, "loguniform starts above 0"),
        ({"train.lr": {"loguniform": [0.1, 1], "step": 0.1}}, "loguniform has no step"),
        ({"train.batch_size": {"uniform": [2, 8]}}, "takes whole numbers; use int"),
        ({"train.batch_size": {"int": [2, 8.5]}}, "int takes whole numbers"),
        ({"assign.name": {"choice": []}}, "choice takes a list of values"),
        ({"assign.name": {"choice": ["atss", "atss"]}}, "choice repeats a value"),
        ({"assign.name": {"choice": ["max_iou", "magic"]}}, "'magic' does not exist"),
        ({"assign.sigma": {"uniform": [0.5, 2]}}, r"assign\.sigma: got 0\.5"),
        ({"assign.pos_threshold": {"uniform": [0.3, 0.6]}}, "ignore_threshold 0.4 is above"),
        ({"assign.topk": {"int": [5, 9]}}, "not used by mutual_guidance; assigners that use it: "),
        ({"loss.poly": {"uniform": [0, 2]}}, "no effect with these values of assign.name, loss"),
        (
            {"assign.sigma": {"uniform": [2, 3], "when": {"assign.name": "mutual_guidance"}}},
            r"when names assign\.name, which is not in sweep\.space",
        ),
        (
            {
                "assign.sigma": {"uniform": [2, 3], "when": {"assign.name": "atss"}},
                "assign.name": ASSIGNERS,
            },
            "when assign.name = 'atss', which is not searched",
        ),
        (
            {
                "assign.sigma": {"uniform": [2, 3], "when": {"assign.name": "max_iou"}},
                "assign.name": ASSIGNERS,
            },
            "no effect with these values of assign.name",
        ),
        (
            {
                "train.lr": {"uniform": [0.1, 0.2], "when": {"train.momentum": 0.9}},
                "train.momentum": {"choice": [0.9, 0.8], "when": {"train.lr": 0.1}},
            },
            "conditions that depend on each other",
        ),
        ({"train.lr": {"uniform": [0.1, 0.2], "when": "always"}}, "when takes a mapping"),
    ],
)
def test_mistake_is_one_line_that_names_the_field(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        space(fields)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("sweep.space")


def test_given_points_are_checked() -> None:
    searched = space({"train.lr": {"uniform": [0.1, 0.2]}})
    searched.check_point({"train.lr": 0.1}, "sweep.points[0]")
    with pytest.raises(UserError, match=r"points\[0\]: train\.momentum is not in sweep\.space"):
        searched.check_point({"train.momentum": 0.9}, "sweep.points[0]")
    with pytest.raises(UserError, match=r"points\[1\]: train\.lr = 0\.3 is not one of its values"):
        searched.check_point({"train.lr": 0.3}, "sweep.points[1]")
    params = searched.complete({"train.lr": 0.15}, lambda field, domain: domain.values[0])
    assert params == {"train.lr": 0.15}


def test_values_of_a_range_have_no_rounding_noise() -> None:
    domain = Domain.parse("train.lr", {"uniform": [0.1, 0.4], "step": 0.1})
    assert domain.all_values() == [0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ({"assign.name": "max_iou", "assign.sigma": 2.0}, "assign.sigma has no effect"),
        ({"assign.name": "mutual_guidance", "assign.sigma": 2.1}, "is not one of its values"),
        ({"train.batch_size": 4.5}, "is not one of its values"),
    ],
)
def test_points_that_would_be_changed_are_rejected(point: dict[str, Any], expected: str) -> None:
    searched = space(
        {
            "assign.name": ASSIGNERS,
            "assign.sigma": {"uniform": [1.5, 4.0], "step": 0.5},
            "train.batch_size": {"int": [2, 8]},
        }
    )
    searched.check_point({"assign.name": "mutual_guidance", "assign.sigma": 2.5}, "point")
    with pytest.raises(UserError, match=expected):
        searched.check_point(point, "point")
