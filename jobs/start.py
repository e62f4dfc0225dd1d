"""Start from a folder of labelled images: find them, propose a recipe, and with --yes train it.

    guidance start DIR           what is there, what will hurt, a recipe with reasons, and its time
    guidance start DIR --yes     then train, evaluate and register; the same command resumes

DIR is a folder with VOC XML, COCO JSON, YOLO text, WebDataset tars or shard sets, a tar or zip with
VOC, COCO or YOLO, or one WebDataset tar. It is only read.

Every configuration field is an option that replaces what is proposed: --model.image_size 512.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.cli.common import RECIPES, add_class_options, command, given_classes, make_parser, run_job
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.start.measure import Duration
    from pipeline.start.propose import Proposal
    from pipeline.start.state import StartState

FORMATS = ("voc", "coco", "yolo", "webdataset", "shards")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Propose a recipe, and train it with ``--yes``; return both."""
    from pipeline.config import load_config

    parser = _parser()
    config, options = load_config(parser, argv, RECIPES)
    from pipeline.distributed.ray_cluster import check_cluster_paths, joined_address
    from pipeline.reports.doctor.examine import as_dict
    from pipeline.start import state as states
    from pipeline.start.facts import set_facts, this_machine
    from pipeline.start.find import find_data, name_of
    from pipeline.start.prepare import prepare_sets
    from pipeline.start.propose import given_fields, places_for, propose
    from pipeline.start.recipe import read_own_recipe
    from pipeline.start.report import (
        cluster_line,
        data_lines,
        doctor_lines,
        next_lines,
        recipe_lines,
        time_line,
    )
    from pipeline.start.splits import divide
    from pipeline.training.fit import absolute_value

    given = {name: absolute_value(name, value) for name, value in given_fields(config).items()}
    _check(given)
    out = _output(options.dir, options.out, name_of(options.dir))
    recipe = out / states.RECIPE_FILE
    state = states.load_state(out, options.dir)
    own = states.keeps_own_recipe(out, state)
    if own:
        config = read_own_recipe(recipe, given)
    cluster = joined_address(config.ray) if config.ray.enabled else None
    if options.yes:
        is_local = config.ray.storage == places_for("", out)["ray.storage"]
        check_cluster_paths(config.replace({"ray.storage": None}) if is_local else config)
    data = find_data(options.dir, options.format, given_classes(options))
    division = divide(data.splits, options.dir)
    sets = prepare_sets(data, division, out / "shards")
    states.save(out, state)
    _say(data_lines(data, division, sets.manifests, sets.notes))

    counts = [
        sets.manifests[use].samples if use in sets.manifests else 0 for use in ("val", "test")
    ]
    machine = this_machine(use_gpus=config.ray.gpu is not False)
    facts = set_facts(sets.uris["train"], *counts)
    proposal = propose(facts, machine, sets, places_for(data.name, out), given)
    more = [sets.uris["train"], "--config", str(recipe)]
    more += [
        word for use in sets.uris if use != "train" for word in ("--compare-with", sets.uris[use])
    ]
    doctor = f"{command('shards')} doctor {shlex.join(_shown(more))}"
    _say(doctor_lines(proposal.diagnosis, sets.uris, doctor))

    if not own:
        state = _write_recipe(out, proposal, options, state)
        config = proposal.config
    _say(recipe_lines(_shown([str(recipe)])[0], proposal.choices, own))
    contents = [manifest.content_hash for manifest in sets.manifests.values()]
    key = states.digest(config, *contents)
    duration, state = _measured(out, state, key, config, facts.images, *counts)
    _say([time_line(duration, machine), *([cluster_line(cluster)] if cluster else [])])
    result = {
        "data": {"path": str(options.dir), "format": data.kind, "splits": data.splits},
        "sets": sets.uris,
        "samples": {use: manifest.samples for use, manifest in sets.manifests.items()},
        "notes": [*data.notes, *division.notes, *sets.notes],
        "doctor": as_dict(proposal.diagnosis),
        "recipe": str(recipe),
        "own_recipe": own,
        "choices": [] if own else [vars(choice) for choice in proposal.choices],
        "seconds": vars(duration),
        "trained": None,
        "evaluated": None,
    }
    if not options.yes:
        words = [word for word in (sys.argv[1:] if argv is None else argv) if word != "--json"]
        again = f"{command('start')} {shlex.join([*words, '--yes'])}"
        print("\n".join(next_lines(proposal.diagnosis, again)), flush=True)
        return result
    name = states.digest(config, *contents, resources=False)[:8]
    run = f"{proposal.fields['tracking.experiment']}-{name}"
    return result | _train(out, state, run, recipe, given, sets.uris)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("start", str(__doc__))
    add = parser.add_argument
    add("dir", type=_local_path, metavar="DIR", help="folder, tar or zip with the labelled images")
    add("--yes", action="store_true", help="train, evaluate and register; resumes what was stopped")
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for the recipe, the shard sets and the runs (default: ./NAME-detector)",
    )
    add("--format", choices=FORMATS, help="format to use if there are several")
    add_class_options(parser)
    return parser


def _local_path(text: str) -> Path:
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text}: DIR is a local folder, tar or zip; {command('train')} --data.train reads "
            f"shard sets from a store, and {command('prepare')} --source webdataset WebDataset tars"
        )
    return Path(text)


def _output(source: Path, given: Path | None, name: str) -> Path:
    """Return the folder for the results, which is not in the data.

    Without one that is given, it is in the working directory, or beside the data if that is in the
    data. Raises UserError.
    """
    data = source.resolve()
    out = (given or Path(f"{name}-detector")).resolve()
    if out == data or data in out.parents:
        if given is not None:
            raise UserError(f"--out {given} is in the data; name a folder outside of {source}")
        out = data.parent / out.name
    return out


def _check(given: dict[str, Any]) -> None:
    for use in ("train", "val", "test"):
        if f"data.{use}" in given:
            raise UserError(
                f"data.{use} is made from DIR; to train on shard sets that exist, use "
                f"{command('train')}, or give their folder as DIR"
            )


def _say(lines: list[str]) -> None:
    print("\n".join([*lines, ""]), flush=True)


def _shown(words: list[str]) -> list[str]:
    """Return paths below the working directory relative to it."""
    here = f"{Path.cwd()}/"
    return [word.removeprefix(here) for word in words]


def _write_recipe(
    out: Path, proposal: Proposal, options: argparse.Namespace, state: StartState
) -> StartState:
    from pipeline.start import state as states
    from pipeline.start.recipe import recipe_text

    path = out / states.RECIPE_FILE
    header = [
        f"Proposed for {options.dir.absolute()}; later calls keep what you change here.",
        "",
        f"Command: {command('train')} --config {shlex.quote(str(path))}",
    ]
    text = recipe_text(proposal, header).encode()
    states.write(path, text)
    state = state.model_copy(update={"recipe_sha256": hashlib.sha256(text).hexdigest()})
    states.save(out, state)
    return state


def _measured(
    out: Path, state: StartState, key: str, config: Config, images: int, val: int, test: int
) -> tuple[Duration, StartState]:
    """Return the time of the training, measured unless an earlier call has done so."""
    from pipeline.start import state as states
    from pipeline.start.measure import Duration, measure

    if key in state.measured:
        return Duration(*state.measured[key]), state
    print("measuring a few steps ...", file=sys.stderr, flush=True)
    duration = measure(config, images, val, test)
    state = state.model_copy(update={"measured": {key: list(vars(duration).values())}})
    states.save(out, state)
    return duration, state


def _train(
    out: Path,
    state: StartState,
    run: str,
    recipe: Path,
    given: dict[str, Any],
    uris: dict[str, str],
) -> dict[str, Any]:
    """Train and evaluate what earlier calls have not."""
    from jobs import evaluate, train
    from pipeline.start.recipe import is_private
    from pipeline.start.state import save

    if run in state.trained:
        print("\n".join(train.summary(state.trained[run])), flush=True)
    else:
        words = [f"--config={recipe}", f"--run={run}"]
        words += [f"--{name}={value}" for name, value in given.items() if is_private(name, value)]
        try:
            state = state.with_result("trained", run, train.main(words))
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the same command resumes") from None
        save(out, state)
    trained = state.trained[run]
    if trained["model_uri"] and run not in state.evaluated:
        use = "test" if "test" in uris else "val"
        print(f"\nevaluation on the {use} images:", flush=True)
        words = [f"--model={trained['model_uri']}", f"--tracking.uri={trained['tracking_uri']}"]
        words += [f"--data={uris[use]}", f"--out={out / 'evaluation'}"]
        state = state.with_result("evaluated", run, evaluate.main(words))
        save(out, state)
    evaluated = state.evaluated.get(run)
    if evaluated:
        print(f"page        {evaluated['files']['page']}", flush=True)
    return {"trained": trained, "evaluated": evaluated}


if __name__ == "__main__":
    run_job(main)
