"""Looking at a model's folder, and what revisions make of what is seen there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ValidationError

from serving.artifacts import look_at
from serving.models import Deployment
from serving.services import deployment_create, revision_create, revision_restore
from tests import factories

pytestmark = pytest.mark.django_db
SERVER = ["my-server", "--port", "{port}"]


def embedding(folder: Path) -> Path:
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    (folder / "modules.json").write_text("[]")
    return folder


def mlflow(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "MLmodel").write_text("flavors:\n  python_function:\n    loader_module: mlflow.sklearn\n")
    return folder


def served(folder: Path | str, **fields: Any) -> Deployment:
    model = factories.model(artifact_kind="path", artifact_value=str(folder))
    return deployment_create(pool=factories.pool(model=model), name="m", actor="t", **fields)


def test_a_folder_is_listed_two_levels_deep_and_its_descriptions_are_read(tmp_path: Path) -> None:
    folder = embedding(tmp_path / "m")
    (folder / "1_Pooling" / "deep").mkdir()
    (folder / "1_Pooling" / "deep" / "file").write_text("")
    seen = look_at("path", str(folder))
    assert seen.names == {"config.json", "modules.json", "1_Pooling/config.json", "1_Pooling/deep"}
    assert seen.files == {"config.json": '{"architectures": ["BertModel"]}'}


def test_what_cannot_be_looked_at_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for value in (str(tmp_path / "nowhere"), "relative", str(tmp_path / "file"), "/\0"):
        seen = look_at("path", value)
        assert seen.names is None
        assert seen.unseen
    assert "hub" in look_at("hub", "org/name").unseen
    hidden = tmp_path / "loop"
    hidden.mkdir()
    os.symlink("config.json", hidden / "config.json")
    assert look_at("path", str(hidden)).unseen


def test_a_huge_folder_is_listed_in_part(tmp_path: Path) -> None:
    for index in range(2100):
        (tmp_path / f"{index:05}").write_text("")
    names = look_at("path", str(tmp_path)).names
    assert names is not None
    assert len(names) == 2000


def test_the_files_choose_runtime_and_options_with_the_reason(tmp_path: Path) -> None:
    revision = served(embedding(tmp_path / "m"), options={"max_model_len": 512}).revisions.get()
    assert revision.runtime == "vllm"
    assert revision.options == {"task": "embed", "max_model_len": 512}
    assert "sentence-transformers" in revision.runtime_reason


def test_what_is_given_goes_before_what_the_files_say(tmp_path: Path) -> None:
    folder = embedding(tmp_path / "m")
    deployment = served(folder, options={"task": "score"})
    assert deployment.revisions.get().options == {"task": "score"}
    by_hand = revision_create(deployment=deployment, runtime="vllm", actor="t")
    assert (by_hand.options, by_hand.runtime_reason) == ({"task": "embed"}, "Set by hand.")
    own = revision_create(deployment=deployment, runtime="command", options={"argv": SERVER}, actor="t")
    assert (own.options, own.runtime_reason) == ({"argv": SERVER}, "Set by hand.")
    first = deployment.revisions.get(number=1)
    (folder / "modules.json").unlink()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    restored = revision_restore(revision=first, actor="t")
    assert restored.options == {"task": "score"}, "an earlier revision comes back as it was, whatever the files say now"
    assert restored.runtime_reason.startswith("As revision 1. A sentence-transformers model")


def test_an_mlflow_model_is_served_by_mlflow(tmp_path: Path) -> None:
    revision = served(mlflow(tmp_path / "m")).revisions.get()
    assert (revision.runtime, revision.options) == ("mlflow", {})


def test_an_mlflow_model_is_priced_by_rows_and_bytes(tmp_path: Path) -> None:
    folder = mlflow(tmp_path / "m")
    saved = factories.model(artifact_kind="path", artifact_value=str(folder))
    other = factories.model(artifact_kind="path", artifact_value=str(tmp_path / "nowhere"))
    price, tokens = (factories.pool(model=model).profiles.get() for model in (saved, other))
    assert set(price.modalities) == {"row", "kib"}
    assert (price.alpha, price.beta, price.calibrated) == (0.0, 0.0, False)
    assert price.base > 0
    assert tokens.alpha > 0


def test_files_of_no_known_kind_ask_for_a_command(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    with pytest.raises(ValidationError) as error:
        served(folder)
    assert "Give the runtime command with argv" in str(error.value.message_dict["runtime"])
    revision = served(folder, options={"argv": SERVER}).revisions.get()
    assert (revision.runtime, revision.options) == ("command", {"argv": SERVER})
