"""Where W&B runs go: the spec comes first, then W&B's own variables."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from parcae_core.errors import UserError
from sweeps.design.sections import WandbSection
from sweeps.design.spec import parse_spec
from sweeps.tracking.server import target
from tests.support.tiny import spec_dict

VARIABLES = {"WANDB_MODE": "online", "WANDB_PROJECT": "theirs", "WANDB_ENTITY": "team"}


def test_variables_fill_what_the_spec_leaves_open():
    found = target(WandbSection(), environment=VARIABLES)
    assert (found.mode, found.project) == ("online", "team/theirs")
    assert found.sentence() == (
        "W&B online, project team/theirs: by WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY"
    )
    defaults = target(WandbSection(), environment={})
    assert (defaults.mode, defaults.project) == ("offline", "parcae-scaling")
    assert defaults.sentence() is None
    assert target(WandbSection(), environment={"WANDB_MODE": "dryrun"}).mode == "offline"


def test_the_spec_comes_first_and_the_command_line_before_it():
    given = WandbSection(mode="offline", project="ours", entity="me")
    found = target(given, environment=VARIABLES)
    assert (found.mode, found.project, found.from_variables) == ("offline", "me/ours", ())
    assert target(given, "disabled", VARIABLES).mode == "disabled"
    # saying the default is saying it
    assert target(WandbSection(mode="offline"), environment=VARIABLES).mode == "offline"


def test_a_mode_that_is_none_is_refused():
    with pytest.raises(
        UserError, match="WANDB_MODE is 'on'; it must be online, offline or disabled"
    ):
        target(WandbSection(), environment={"WANDB_MODE": "on"})


def test_an_entity_changes_the_specs_hash_and_its_absence_does_not():
    plain = parse_spec(spec_dict(), "tiny.yaml")
    with_entity = parse_spec(spec_dict(wandb={"mode": "disabled", "entity": "team"}), "tiny.yaml")
    assert plain.sha256 != with_entity.sha256
    # as before W&B's entity was known to specs: runs of then keep their names
    data = plain.model_dump(mode="json")
    assert "entity" not in data["wandb"]
    assert data.keys().isdisjoint(("trunks", "scheduler"))
    assert plain.sha256[:12] == "f0db4d547c57"


def test_a_run_is_the_teams(tmp_path):
    code = (
        "import sys; from pathlib import Path; from sweeps.store import Store\n"
        "from sweeps.tracking.trial_run import open_run\n"
        "out = Path(sys.argv[1])\n"
        "run = open_run(Store(out, 's'), out, run_id='a', project='team/theirs', job_type='trial',\n"
        "               mode='offline', config={})\n"
        "print(run.entity, run.project, run.dir)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"WANDB_DIR": str(tmp_path / "elsewhere")},
        capture_output=True,
        text=True,
        check=True,
    )
    entity, project, folder = done.stdout.split()
    assert (entity, project) == ("team", "theirs")
    # offline runs stay with the sweep, where `parcae sync` finds them
    assert Path(folder).is_relative_to(tmp_path / "wandb")
