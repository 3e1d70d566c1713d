"""What is run elsewhere is of the right form: images, composed services, Kubernetes, workflows.

No daemon and no cluster runs here. Each file is held to the schema of whoever reads it, Ray's own
reader included, and to what else can be told: names, versions, and that no secret stands in it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.test_imports import ROOT

DEPLOY, GITHUB = ROOT / "deploy", ROOT / ".github"
KUBERAY = Path(__file__).parent / "data" / "kuberay-1.7.0-crds.tar.xz"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
SECRET = re.compile(r"(KEY|PASSWORD|TOKEN|SECRET)$")
NOT_SECRET = {"AWS_ACCESS_KEY_ID"}


def read(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


RESOURCES = [
    pytest.param(resource, id=f"{path.stem}-{resource['kind']}")
    for path in sorted((DEPLOY / "kuberay").glob("*.yaml"))
    for resource in read(path)
]


def schema_of(kind: str) -> Any:
    """KubeRay's own schema of a kind; a field that it does not name is refused, as by a server."""
    with tarfile.open(KUBERAY) as archive:
        file = archive.extractfile(f"ray.io_{kind.lower()}s.yaml")
        assert file is not None
        versions = yaml.load(file, yaml.CSafeLoader)["spec"]["versions"]
    found = next(version for version in versions if version["name"] == "v1")
    return strict(found["schema"]["openAPIV3Schema"])


def strict(node: Any) -> Any:
    if isinstance(node, list):
        return [strict(each) for each in node]
    if not isinstance(node, dict):
        return node
    made = {name: strict(each) for name, each in node.items()}
    open_ = made.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in made
    if isinstance(made.get("properties"), dict) and not open_:
        made["additionalProperties"] = False
    if made.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    return made


def pods(resource: Any) -> Iterator[dict[str, Any]]:
    """Every pod that a resource makes."""
    if isinstance(resource, Mapping):
        if "containers" in resource:
            yield dict(resource)
        for inner in resource.values():
            yield from pods(inner)
    elif isinstance(resource, list):
        for inner in resource:
            yield from pods(inner)


@pytest.mark.parametrize("resource", RESOURCES)
def test_kubernetes_takes_each_resource(resource: dict[str, Any]) -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    if resource["apiVersion"].startswith("ray.io/"):
        # "metadata" is the server's own: a CRD has none of its fields.
        root = schema_of(resource["kind"])
        root["properties"]["metadata"] = {"type": "object", "required": ["name"]}
        jsonschema.Draft202012Validator(root).validate(resource)
    else:
        validate(resource, "1.35.0", strict=True)
    for spec in pods(resource):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, "spec": spec}
        validate(pod, "1.35.0", strict=True)


def test_a_resource_that_is_wrong_is_refused() -> None:
    """So that the test above can fail: a name of a field, a type."""
    (good,) = [r.values[0] for r in RESOURCES if r.id == "raycluster-RayCluster"]  # type: ignore[attr-defined]
    root = schema_of("RayCluster")
    root["properties"]["metadata"] = {"type": "object"}
    for path, value in ((("headGroupSpecs",), {}), (("workerGroupSpecs",), [{"replicas": "two"}])):
        bad = json.loads(json.dumps(good))
        bad["spec"][path[0]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft202012Validator(root).validate(bad)


@pytest.mark.parametrize("resource", RESOURCES)
def test_pods_have_no_rights_that_they_do_not_need(resource: dict[str, Any]) -> None:
    for spec in pods(resource):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert re.sub("-cuda$", "", container["image"]) == f"tintray:{VERSION}"
            for variable in container.get("env", []):
                assert "value" not in variable or not SECRET.search(variable["name"])


@pytest.mark.parametrize("resource", RESOURCES)
def test_a_cluster_has_the_ray_that_is_tested(resource: dict[str, Any]) -> None:
    ray = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert ray is not None
    assert set(re.findall(r"'rayVersion': '([^']+)'", str(resource))) <= {ray[1]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own
def test_ray_serve_takes_the_application() -> None:
    from ray.serve.schema import ServeDeploySchema

    from tintray.jobs.serving.application import app

    (service,) = read(DEPLOY / "kuberay" / "rayservice.yaml")
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = config.applications
    assert application.import_path == "tintray.jobs.serving.application:app"
    (deployment,) = application.deployments
    assert app(application.args)._bound_deployment.name == deployment.name


def test_the_job_of_a_ray_job_is_a_job_file() -> None:
    from tintray.jobs.config.job_file import JobSpec

    config, job = read(DEPLOY / "kuberay" / "rayjob.yaml")
    mounted = job["spec"]["entrypoint"].split()[-1]
    spec = JobSpec.model_validate(yaml.safe_load(config["data"][Path(mounted).name]))
    assert spec.cluster.address == "auto"


def test_commands_of_services_and_pods_are_there() -> None:
    from tests.answers import COMMANDS

    compose = read(DEPLOY / "compose.yaml")[0]["services"]
    (monitor,) = read(DEPLOY / "kuberay" / "monitor.yaml")
    (container,) = monitor["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    for words in (compose["serve"]["command"], container["args"]):
        if words[0] == "serve":
            known = {name for one in COMMANDS["serve start"].params for name in one.opts}
        else:
            known = {name for one in COMMANDS[words[0]].params for name in one.opts}
        assert {word for word in words if word.startswith("--")} <= known


def test_composed_services_have_their_secrets_from_elsewhere() -> None:
    compose = read(DEPLOY / "compose.yaml")[0]
    example = (DEPLOY / "env.example").read_text()
    for name, service in compose["services"].items():
        for variable, value in service.get("environment", {}).items():
            if SECRET.search(variable) and variable not in NOT_SECRET and name != "store":
                assert re.match(r"\$\{\w+:[?-]", value), variable
    for variable in re.findall(r"\$\{(\w+):\?", (DEPLOY / "compose.yaml").read_text()):
        assert re.search(rf"^{variable}=$", example, re.MULTILINE)
    assert compose["services"]["serve"]["ports"] == ["127.0.0.1:8000:8000"]


def installed(program: str) -> Path:
    """A program of this environment."""
    found = Path(sys.executable).with_name(program)
    if not found.exists():
        pytest.skip(f"{program} is not installed; the extra `test` has it")
    return found


SCHEMAS = {
    "deploy/compose.yaml": "compose-spec",
    "CITATION.cff": "citation-file-format",
    ".github/dependabot.yml": "dependabot",
    ".github/ISSUE_TEMPLATE/config.yml": "github-issue-config",
    **{f".github/ISSUE_TEMPLATE/{name}.yml": "github-issue-forms" for name in ("bug", "wish")},
    **{f".github/workflows/{path.name}": "github-workflows" for path in GITHUB.glob("workflows/*")},
}


@pytest.mark.parametrize("file", SCHEMAS)
def test_files_are_of_the_form_that_their_readers_publish(file: str) -> None:
    program = installed("check-jsonschema")
    command = [program, "--builtin-schema", f"vendor.{SCHEMAS[file]}", ROOT / file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_the_image_is_built_as_its_linter_asks() -> None:
    program = [installed("hadolint"), ROOT / "Dockerfile"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    last = (ROOT / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    assert "USER 10001:10001" in last


def test_what_the_image_copies_is_let_through() -> None:
    let = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    copied = re.findall(
        r"^COPY (?!--from)(.*) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE
    )
    assert {name for names in copied for name in names.split()} == let
    assert all((ROOT / name).exists() for name in let)


def test_versions_are_one() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == VERSION
    assert f"## {VERSION}" in (ROOT / "CHANGELOG.md").read_text()
