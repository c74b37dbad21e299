"""What the images and the compose file promise, read from their text: no engine is needed."""

from __future__ import annotations

import re
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "deploy").glob("*.Dockerfile"))
SCRIPTS = [ROOT / ".ci" / "run", ROOT / "deploy" / "train-and-publish.sh"]
MODEL_MAKERS = {"torch", "onnx", "onnxscript", "transformers", "peft", "polars", "tensorboard"}


@dataclass(frozen=True)
class Instruction:
    word: str
    rest: str


def instructions(dockerfile: Path) -> list[Instruction]:
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def of(word: str, dockerfile: Path) -> list[str]:
    return [instruction.rest for instruction in instructions(dockerfile) if instruction.word == word]


def compose() -> dict[str, Any]:
    parsed = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert isinstance(parsed, dict)
    return parsed


def extras() -> dict[str, list[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def installed(extra: str) -> set[str]:
    """Names that `mdctr[extra]` asks for, through the extras that it names."""
    found = set()
    for requirement in extras()[""] + extras()[extra]:
        inner = re.fullmatch(r"mdctr\[(.+)\]", requirement)
        if inner:
            found |= installed(inner[1])
        else:
            found.add(re.split(r"[^\w.-]", requirement)[0].lower())
    return found


def extras_of(dockerfile: Path) -> set[str]:
    return {extra for run in of("RUN", dockerfile) for extra in re.findall(r"mdctr\[([\w-]+)\]", run)}


def test_both_images_are_here() -> None:
    assert [path.stem for path in DOCKERFILES] == ["service", "training"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
class TestDockerfile:
    def test_names_a_version_of_its_base(self, dockerfile: Path) -> None:
        defaults = dict(arg.split("=", 1) for arg in of("ARG", dockerfile) if "=" in arg)
        for line in of("FROM", dockerfile):
            image = re.sub(r"\$\{(\w+)\}", lambda name: defaults[name[1]], line.split()[0])
            assert re.search(r"(:[\w.-]+|@sha256:[0-9a-f]{64})$", image), image
            assert not image.endswith(":latest")

    def test_ends_as_an_ordinary_user(self, dockerfile: Path) -> None:
        found = instructions(dockerfile)
        last_stage = max(at for at, instruction in enumerate(found) if instruction.word == "FROM")
        users = [instruction.rest for instruction in found[last_stage:] if instruction.word == "USER"]
        assert users
        # A number, so that an orchestrator can tell that it is not root without reading /etc/passwd.
        assert int(users[-1].split(":")[0]) > 0

    def test_copies_what_exists_and_is_not_ignored(self, dockerfile: Path) -> None:
        kept = {
            line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
        }
        copies = [line.split() for line in of("COPY", dockerfile) if not line.startswith("--from=")]
        assert copies
        for *sources, _ in copies:
            for source in sources:
                assert (ROOT / source).exists(), source
                assert Path(source).parts[0] in kept, source

    def test_copies_every_package_of_the_wheel(self, dockerfile: Path) -> None:
        wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"][
            "wheel"
        ]
        copied = {source.rstrip("/") for line in of("COPY", dockerfile) for source in line.split()[:-1]}
        assert set(wheel["packages"]) <= copied

    def test_installs_extras_that_exist_under_the_constraints(self, dockerfile: Path) -> None:
        assert extras_of(dockerfile)
        assert extras_of(dockerfile) <= set(extras())
        for run in of("RUN", dockerfile):
            assert run.count("pip install") == run.count("pip install --constraint constraints.txt")


def test_the_service_image_makes_no_models() -> None:
    [extra] = extras_of(ROOT / "deploy" / "service.Dockerfile")
    assert not installed(extra) & MODEL_MAKERS
    assert "onnxruntime" in installed(extra)


def test_the_training_image_makes_models_and_publishes_them() -> None:
    [extra] = extras_of(ROOT / "deploy" / "training.Dockerfile")
    assert {"torch", "onnx", "redis"} <= installed(extra)


def test_the_service_image_says_whether_it_is_well() -> None:
    [check] = of("HEALTHCHECK", ROOT / "deploy" / "service.Dockerfile")
    assert "/healthz" in check


def test_the_images_set_what_the_service_and_the_script_read() -> None:
    from service.settings import Settings

    script = (ROOT / "deploy" / "train-and-publish.sh").read_text()
    for dockerfile in DOCKERFILES:
        for name in re.findall(r"(\w+)=", " ".join(of("ENV", dockerfile))):
            if name.startswith("MDCTR_"):
                assert name.removeprefix("MDCTR_").lower() in Settings.model_fields
            elif name in {"RUNS", "BUNDLES", "RECIPE"}:
                assert f"${{{name}:-" in script


def test_the_images_recipe_exists() -> None:
    [recipe] = re.findall(
        r"RECIPE=/srv/recipes/(\S+)", " ".join(of("ENV", ROOT / "deploy" / "training.Dockerfile"))
    )
    assert (ROOT / "training" / "recipes" / recipe).is_file()


class TestCompose:
    def test_waits_for_services_that_exist_and_can_become_ready(self) -> None:
        services = compose()["services"]
        for name, service in services.items():
            for other, how in service.get("depends_on", {}).items():
                assert other in services, f"{name} waits for {other}"
                if how["condition"] == "service_healthy":
                    assert "healthcheck" in services[other], f"{name} waits for the health of {other}"
                if how["condition"] == "service_completed_successfully":
                    assert services[other].get("restart") == "no", f"{other} would never be complete"

    def test_the_service_comes_after_its_packs(self) -> None:
        conditions = {
            other: how["condition"] for other, how in compose()["services"]["service"]["depends_on"].items()
        }
        assert conditions == {"redis": "service_healthy", "publish": "service_completed_successfully"}

    def test_builds_from_dockerfiles_that_exist(self) -> None:
        builds = [service["build"] for service in compose()["services"].values() if "build" in service]
        assert len(builds) == len(DOCKERFILES)
        for build in builds:
            dockerfile = ROOT / build["context"] / build["dockerfile"]
            assert dockerfile in DOCKERFILES
            assert set(build.get("args", {})) <= {arg.split("=")[0] for arg in of("ARG", dockerfile)}

    def test_pulls_named_versions(self) -> None:
        for service in compose()["services"].values():
            if "image" in service:
                image = re.sub(r"\$\{\w+:-(.+)\}", r"\1", service["image"])
                assert re.search(r":[\w.-]*\d[\w.-]*$", image), image

    def test_declares_its_volumes_and_uses_them(self) -> None:
        used = {
            mount.split(":")[0] for service in compose()["services"].values() for mount in service["volumes"]
        }
        assert used == set(compose()["volumes"])

    def test_only_the_publisher_writes_bundles(self) -> None:
        mounts = {name: service["volumes"] for name, service in compose()["services"].items()}
        assert "bundles:/bundles" in mounts["publish"]
        assert mounts["service"] == ["bundles:/bundles:ro"]

    def test_sets_only_what_the_service_knows(self) -> None:
        from service.settings import Settings

        for name in compose()["services"]["service"]["environment"]:
            assert name.startswith("MDCTR_")
            assert name.removeprefix("MDCTR_").lower() in Settings.model_fields

    def test_its_settings_are_valid(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from service.settings import Settings

        for name, value in compose()["services"]["service"]["environment"].items():
            monkeypatch.setenv(name, value)
        assert str(Settings().bundle) == "/bundles/current"

    def test_sets_only_what_the_script_reads(self) -> None:
        script = (ROOT / "deploy" / "train-and-publish.sh").read_text()
        for name in compose()["services"]["publish"]["environment"]:
            assert f"${{{name}:" in script

    def test_nothing_without_a_key_leaves_the_machine(self) -> None:
        for service in compose()["services"].values():
            for port in service.get("ports", []):
                assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_executable_strict_bash(script: Path) -> None:
    assert script.stat().st_mode & 0o111
    assert "set -euo pipefail\n" in script.read_text()
    subprocess.run(["bash", "-n", script], check=True)


def test_every_requirement_of_the_development_environment_is_pinned() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines)
    wanted = {name.replace("_", "-") for name in installed("dev")}
    assert wanted <= set(pins)
    assert not [version for version in pins.values() if "+" in version]
