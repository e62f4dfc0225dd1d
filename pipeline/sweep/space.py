"""The search space of a recipe, checked against the configuration before a trial starts."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from itertools import product
from typing import TYPE_CHECKING, Any

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.sweep.domain import Domain
from pipeline.trials.relevance import (
    check_field,
    controls,
    explain_useless,
    field_value,
    matters,
)
from pipeline.trials.trial_records import Params

if TYPE_CHECKING:
    import optuna


class SearchSpace:
    """The searched fields in an order in which each follows those that it depends on.

    Raises UserError for an empty space, an unknown field, a field that no score depends on, a
    specification that is not one, a condition on a field that is not searched, and values that the
    configuration does not accept.
    """

    def __init__(self, config: Config) -> None:
        if not config.sweep.space:
            raise UserError("sweep.space is empty; give fields to search, as in configs/sweeps")
        if "train.epochs" in config.sweep.space and config.sweep.scheduler == "asha":
            raise UserError(
                "sweep.space.train.epochs: asha compares trials at the same epochs of trainings of "
                "the same length; set sweep.scheduler: none"
            )
        steps = "train.min_steps" in config.sweep.space or config.train.min_steps
        lengths = {"train.min_steps", "train.batch_size"} & set(config.sweep.space)
        if steps and lengths and config.sweep.scheduler == "asha":
            raise UserError(
                f"sweep.space.{min(lengths)}: with train.min_steps, trials would have different "
                "epochs, and asha compares trainings of the same length; set train.min_steps: 0 "
                "or sweep.scheduler: none"
            )
        self.config = config
        domains = {}
        for field, spec in config.sweep.space.items():
            check_field(field, f"sweep.space.{field}")
            domains[field] = Domain.parse(field, spec)
        self.domains = {field: domains[field] for field in _ordered(domains)}
        for field, domain in self.domains.items():
            self._check_conditions(field, domain)
            self._check_values(field, domain)

    def suggest(self, trial: optuna.Trial) -> Params:
        """Draw the values of a trial of Optuna."""
        return self._complete(lambda field, domain: domain.suggest(trial, field))

    def complete(self, point: Mapping[str, Any], draw: Callable[[str, Domain], Any]) -> Params:
        """Return the values of a point; ``draw`` gives those that it lacks."""
        return self._complete(
            lambda field, domain: point[field] if field in point else draw(field, domain)
        )

    def is_finite(self) -> bool:
        """Return whether there is an end of points."""
        return all(domain.all_values() is not None for domain in self.domains.values())

    def check_finite(self) -> None:
        """Raise UserError unless all points can be tried."""
        for field, domain in self.domains.items():
            if domain.all_values() is None:
                raise UserError(
                    f"sweep.space.{field}: the searcher grid needs a list, or a range with a step"
                )

    def combinations(self) -> Iterator[Params]:
        """Yield all valid points of a finite space, each once."""
        return self._combinations(list(self.domains), {})

    def starts(self) -> Iterator[Params]:
        """Yield the valid combinations of backbone and starting weights, with what they depend on.

        Other fields have the values of the recipe. Of a range without steps, its ends are used.
        """
        needed = {"model.backbone", "model.init"}
        for field in reversed(self.domains):  # each before those that it depends on
            if field in needed:
                needed |= {*controls(field), *self.domains[field].when}
        yield from self._combinations([field for field in self.domains if field in needed], {})

    def check_point(self, point: Mapping[str, Any], source: str) -> None:
        """Raise UserError unless a given point is in the space and the configuration accepts it."""
        for field, value in point.items():
            if field not in self.domains:
                raise UserError(f"{source}: {field} is not in sweep.space")
            if value not in self.domains[field]:
                raise UserError(f"{source}: {field} = {value!r} is not one of its values")
            needed = {*controls(field), *self.domains[field].when} & self.domains.keys()
            if needed <= point.keys() and not self._applies(field, point):
                raise UserError(f"{source}: {field} has no effect with the other values")
        try:
            self.config.replace(point)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None

    def is_valid(self, params: Mapping[str, Any]) -> bool:
        """Return whether the configuration accepts the values together."""
        try:
            self.config.replace(params)
        except UserError:
            return False
        return True

    def _complete(self, choose: Callable[[str, Domain], Any]) -> Params:
        params: Params = {}
        for field, domain in self.domains.items():
            if self._applies(field, params):
                params[field] = choose(field, domain)
        return params

    def _combinations(self, fields: list[str], params: Params) -> Iterator[Params]:
        if not fields:
            if self.is_valid(params):
                yield params
            return
        field, *rest = fields
        if not self._applies(field, params):
            yield from self._combinations(rest, params)
            return
        domain = self.domains[field]
        for value in domain.all_values() or domain.values:
            yield from self._combinations(rest, {**params, field: value})

    def _applies(self, field: str, params: Mapping[str, Any]) -> bool:
        """Return whether a field is searched, given the values of the fields before it."""
        for other, values in self.domains[field].when.items():
            if other not in params or params[other] not in values:
                return False
        return matters(field, self._values(params))

    def _values(self, params: Mapping[str, Any]) -> Callable[[str], Any]:
        return lambda field: params[field] if field in params else field_value(self.config, field)

    def _check_conditions(self, field: str, domain: Domain) -> None:
        for other, values in domain.when.items():
            for value in values:
                if value not in self.domains[other]:
                    raise UserError(
                        f"sweep.space.{field}: when {other} = {value!r}, which is not searched"
                    )
        # Fields whose values have no end are assumed to take one with which this field matters.
        searched = [other for other in controls(field) if other in self.domains]
        lists = [self.domains[other].all_values() for other in searched]
        if None in lists:
            return
        for values in product(*(one or () for one in lists)):
            params = dict(zip(searched, values, strict=True))
            allowed = all(
                params[other] in values for other, values in domain.when.items() if other in params
            )
            if allowed and matters(field, self._values(params)):
                return
        name = "assign.name"
        assigners = self.domains[name].values if name in self.domains else [self.config.assign.name]
        raise UserError(f"sweep.space.{field}: {explain_useless(field, assigners)}")

    def _check_values(self, field: str, domain: Domain) -> None:
        """Check each value of a list, or both ends of a range."""
        if domain.kind in ("uniform", "loguniform") and _is_integer(self.config, field):
            raise UserError(f"sweep.space.{field}: takes whole numbers; use int")
        context = {other: values[0] for other, values in domain.when.items()}
        for value in domain.values:
            params = {**context, field: value}
            if not self.is_valid(params) and not self._is_valid_with_another(params):
                try:
                    self.config.replace(params)
                except UserError as error:
                    raise UserError(f"sweep.space.{field}: {error}") from None

    def _is_valid_with_another(self, params: Params) -> bool:
        """Return whether a value of another searched field makes the values valid."""
        return any(
            self.is_valid({**params, other: value})
            for other, domain in self.domains.items()
            if other not in params
            for value in domain.values
        )


def _ordered(domains: Mapping[str, Domain]) -> list[str]:
    """Return the fields, each after those it depends on. Raises UserError."""
    graph = {}
    for field, domain in domains.items():
        for other in domain.when:
            if other not in domains:
                raise UserError(
                    f"sweep.space.{field}: when names {other}, which is not in sweep.space"
                )
        graph[field] = [*domain.when, *(name for name in controls(field) if name in domains)]
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise UserError(
            f"sweep.space: conditions that depend on each other: {', '.join(error.args[1])}"
        ) from None


def _is_integer(config: Config, field: str) -> bool:
    section, _, name = field.partition(".")
    annotation = type(getattr(config, section)).model_fields[name].annotation
    types = {annotation, *typing.get_args(annotation)}
    return int in types and float not in types
