"""What the images and the compose file promise, read from their text: no engine is needed."""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import trustme
import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "deploy").glob("*.Dockerfile"))
SCRIPTS = [ROOT / ".ci" / "run", ROOT / "deploy" / "train-and-publish.sh"]
SERVICE, TRAINING = DOCKERFILES
IMAGES = {"service": ("gpu", "cpu"), "training": ("",)}
"""By Dockerfile, the stages that are images."""
COLLECTOR = "http://collector:4318/v1/traces"
HADOLINT = Path(sys.executable).with_name("hadolint")
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


def filled(text: str, given: dict[str, str]) -> str:
    """A shell's `${NAME}` and `${NAME:+...}` replaced, as far as they are given."""
    for name, value in given.items():
        text = re.sub(rf"\$\{{{name}:\+(.*?\}})\}}", (lambda match: match[1]) if value else "", text)
        text = text.replace(f"${{{name}}}", value)
    return text


def arguments(dockerfile: Path) -> dict[str, str]:
    """Build arguments that have a default."""
    return dict(arg.split("=", 1) for arg in of("ARG", dockerfile) if "=" in arg)


def extras_of(dockerfile: Path, **given: str) -> list[set[str]]:
    """The extras of each installation, under these build arguments."""
    values = arguments(dockerfile) | given
    asked = [re.findall(r"mdctr\[([\w,-]+)\]", filled(run, values)) for run in of("RUN", dockerfile)]
    return [set(extras.split(",")) for found in asked for extras in found]


def stages(dockerfile: Path) -> dict[str, list[Instruction]]:
    """Instructions by the name of their stage; the last one's, too, which need have none."""
    found: dict[str, list[Instruction]] = {}
    for instruction in instructions(dockerfile):
        if instruction.word == "FROM":
            current = found[instruction.rest.partition(" AS ")[2]] = []
        elif found:
            current.append(instruction)
    return found


def unset(text: str) -> str:
    """What compose makes of `${NAME:-value}` where no variable is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def test_both_images_are_here() -> None:
    assert [path.stem for path in DOCKERFILES] == ["service", "training"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
class TestDockerfile:
    def test_names_a_version_of_its_base(self, dockerfile: Path) -> None:
        own = {line.partition(" AS ")[2] for line in of("FROM", dockerfile)}
        for line in of("FROM", dockerfile):
            image = filled(line.split()[0], arguments(dockerfile))
            if image in own:
                continue
            assert line.startswith("${"), "a digest could not be given"
            assert re.search(r"(:[\w.-]+|@sha256:[0-9a-f]{64})$", image), image
            assert not image.endswith(":latest")

    def test_ends_as_an_ordinary_user(self, dockerfile: Path) -> None:
        for name in IMAGES[dockerfile.stem]:
            users = [each.rest for each in stages(dockerfile)[name] if each.word == "USER"]
            assert users
            # A number, so that an orchestrator can tell that it is not root without reading /etc/passwd.
            assert int(users[-1].split(":")[0]) > 0

    def test_says_what_it_is(self, dockerfile: Path) -> None:
        for name in IMAGES[dockerfile.stem]:
            labels = " ".join(each.rest for each in stages(dockerfile)[name] if each.word == "LABEL")
            for key in ("title", "description", "licenses", "version", "revision"):
                assert f"org.opencontainers.image.{key}=" in labels
        wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
        assert arguments(dockerfile)["VERSION"] == wheel

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
        for asked in extras_of(dockerfile):
            assert asked <= set(extras())
        for run in of("RUN", dockerfile):
            assert run.count("pip install") == run.count("pip install --constraint constraints.txt")


def test_the_service_image_makes_no_models() -> None:
    cpu, gpu = extras_of(SERVICE)
    for asked, runtime, other in (
        (cpu, "onnxruntime", "onnxruntime-gpu"),
        (gpu, "onnxruntime-gpu", "onnxruntime"),
    ):
        there = set().union(*map(installed, asked))
        assert not there & MODEL_MAKERS
        assert runtime in there
        assert other not in there  # they share a folder
        assert "opentelemetry-sdk" in there


@pytest.mark.parametrize(
    ("given", "asked"), [("", {"service"}), ("exposures,tracing", {"service", "exposures", "tracing"})]
)
def test_extras_of_the_service_image_are_an_argument(given: str, asked: set[str]) -> None:
    assert extras_of(SERVICE, EXTRAS=given)[0] == asked


def test_the_service_image_is_the_one_for_a_cpu_unless_asked() -> None:
    assert list(stages(SERVICE))[-1] == "cpu"
    assert arguments(SERVICE)["CUDA_IMAGE"].startswith(
        "nvidia/cuda:13."
    )  # as onnxruntime-gpu and cuda-bindings


def test_both_service_images_are_the_same_but_for_the_gpu() -> None:
    ours = {
        name: [line for line in stages(SERVICE)[name] if line.word not in {"LABEL", "ENV", "HEALTHCHECK"}]
        for name in ("cpu", "gpu")
    }
    as_cpu = [
        Instruction(line.word, line.rest.replace("installed-gpu", "installed-cpu")) for line in ours["gpu"]
    ]
    assert as_cpu == ours["cpu"]
    [engine] = re.findall(r"MDCTR_ENGINE=(\w+)", " ".join(of("ENV", SERVICE)))
    assert (ROOT / "service" / "engines" / f"{engine}.py").is_file()


def test_the_training_image_makes_models_and_publishes_them() -> None:
    [[extra]] = extras_of(TRAINING)
    assert {"torch", "onnx", "redis"} <= installed(extra)


def test_the_training_image_with_the_load_test_has_locust_and_its_file() -> None:
    [[extra]] = extras_of(TRAINING, EXTRA=compose()["services"]["load"]["build"]["args"]["EXTRA"])
    assert {"locust", "onnx"} <= installed(extra)
    copied = " ".join(of("COPY", TRAINING))
    entrypoint = compose()["services"]["load"]["entrypoint"]
    assert entrypoint[entrypoint.index("-f") + 1] == "/srv/locustfile.py"
    assert "loadtest/locustfile.py loadtest/budgets.yaml /srv/" in copied


def test_the_service_images_say_whether_they_are_well() -> None:
    for name in IMAGES["service"]:
        [check] = [each.rest for each in stages(SERVICE)[name] if each.word == "HEALTHCHECK"]
        assert check.endswith('CMD ["python", "/usr/local/lib/healthy.py"]')
        copied = [each.rest for each in stages(SERVICE)[name] if each.word == "COPY"]
        assert "deploy/healthy.py /usr/local/lib/" in copied


class TestHealthy:
    """`deploy/healthy.py` beside servers that answer, or do not."""

    def asked(self, port: int, **settings: str) -> int:
        environment = {**os.environ, "MDCTR_PORT": str(port), "http_proxy": "http://127.0.0.1:1", **settings}
        script = ROOT / "deploy" / "healthy.py"
        return subprocess.run(
            [sys.executable, script], env=environment, capture_output=True, check=False
        ).returncode

    @contextmanager
    def server(self, status: int = 200, context: ssl.SSLContext | None = None) -> Iterator[int]:
        class Health(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status if self.path == "/healthz" else 404)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """A caller without a certificate is one that is expected."""

        server = Quiet(("127.0.0.1", 0), Health)
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    @pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
    def test_is_what_healthz_says(self, status: int, code: int) -> None:
        with self.server(status) as port:
            assert self.asked(port) == code

    def test_is_not_where_nobody_listens(self) -> None:
        with self.server() as port:
            pass
        assert self.asked(port) == 1
        # A client certificate that is asked for is a sign of life, and a closed port none.
        assert self.asked(port, MDCTR_TLS_CERT="cert", MDCTR_TLS_CLIENT_CA="ca") == 1

    def test_of_a_service_that_speaks_tls(self) -> None:
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("elsewhere").configure_cert(context)
        with self.server(context=context) as port:
            assert self.asked(port, MDCTR_TLS_CERT="cert") == 0
            assert self.asked(port) == 1

    def test_of_a_service_that_asks_for_a_certificate(self) -> None:
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("elsewhere").configure_cert(context)
        authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
        with self.server(context=context) as port:
            assert self.asked(port, MDCTR_TLS_CERT="cert", MDCTR_TLS_CLIENT_CA="ca") == 0
            assert self.asked(port, MDCTR_TLS_CERT="cert") == 1


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
                    of_image = (
                        services[other].get("build", {}).get("dockerfile") == "deploy/service.Dockerfile"
                    )
                    assert of_image or "healthcheck" in services[other], f"{name} waits for {other}'s health"
                if how["condition"] == "service_completed_successfully":
                    assert services[other].get("restart") == "no", f"{other} would never be complete"

    def test_the_service_comes_after_its_packs(self) -> None:
        conditions = {
            other: how["condition"] for other, how in compose()["services"]["service"]["depends_on"].items()
        }
        assert conditions == {"redis": "service_healthy", "publish": "service_completed_successfully"}

    def test_builds_from_dockerfiles_that_exist(self) -> None:
        builds = [service["build"] for service in compose()["services"].values() if "build" in service]
        assert {ROOT / build["context"] / build["dockerfile"] for build in builds} == set(DOCKERFILES)
        for build in builds:
            dockerfile = ROOT / build["context"] / build["dockerfile"]
            assert build.get("target", list(stages(dockerfile))[-1]) in stages(dockerfile)
            assert set(build.get("args", {})) <= {arg.split("=")[0] for arg in of("ARG", dockerfile)}

    def test_pulls_named_versions(self) -> None:
        for service in compose()["services"].values():
            if "image" in service:
                image = re.sub(r"\$\{\w+:-(.+)\}", r"\1", service["image"])
                assert re.search(r":[\w.-]*\d[\w.-]*$", image), image

    def test_declares_its_volumes_and_uses_them(self) -> None:
        mounts = [mount for service in compose()["services"].values() for mount in service["volumes"]]
        used = {mount.split(":")[0] for mount in mounts}
        folders = {place for place in used if place.startswith("./")}
        assert used - folders == set(compose()["volumes"])
        for place in folders:
            assert (ROOT / place).exists(), place
        assert all(mount.endswith(":ro") for mount in mounts if mount.startswith("./"))

    def test_without_a_profile_it_is_the_path_from_clicks_to_answers(self) -> None:
        plain = {name for name, service in compose()["services"].items() if "profiles" not in service}
        assert plain == {"redis", "publish", "service"}
        profiles = {name: service.get("profiles", []) for name, service in compose()["services"].items()}
        assert {each for named in profiles.values() for each in named} == {"monitoring", "load"}

    def test_a_service_of_no_profile_waits_for_none_of_a_profile(self) -> None:
        services = compose()["services"]
        for name, service in services.items():
            for other in service.get("depends_on", {}):
                assert set(services[other].get("profiles", [])) <= set(service.get("profiles", [])), name

    def test_only_redis_may_write_outside_its_volumes(self) -> None:
        for name, service in compose()["services"].items():
            if name != "redis":
                assert service["read_only"], name
                assert service["cap_drop"] == ["ALL"], name
                assert service["security_opt"] == ["no-new-privileges:true"], name

    def test_the_schema_of_compose_files_accepts_it(self) -> None:
        schemas = pytest.importorskip("check_jsonschema", reason="it has the schema of compose files")
        import jsonschema  # type: ignore[import-untyped]

        place = Path(schemas.__file__).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
        validator = jsonschema.Draft202012Validator(json.loads(place.read_text()))
        assert not list(validator.iter_errors(compose()))
        broken = compose()
        broken["services"]["service"]["depend_on"] = ["redis"]
        assert list(validator.iter_errors(broken))

    def test_grafana_shows_and_changes_nothing(self) -> None:
        environment = compose()["services"]["grafana"]["environment"]
        assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
        # Or whoever is on this machine would come in as admin with Grafana's own password.
        assert environment["GF_AUTH_BASIC_ENABLED"] == "false"
        assert environment["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
        home = environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
        mounts = dict(mount.split(":")[1::-1] for mount in compose()["services"]["grafana"]["volumes"])
        assert (ROOT / mounts[home]).is_file()

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
            monkeypatch.setenv(name, unset(value))
        settings = Settings()
        assert str(settings.bundle) == "/bundles/current"
        assert settings.traces == ""
        monkeypatch.setenv("MDCTR_TRACES", COLLECTOR)
        assert Settings().traces == COLLECTOR

    def test_sets_only_what_the_script_reads(self) -> None:
        script = (ROOT / "deploy" / "train-and-publish.sh").read_text()
        for name in compose()["services"]["publish"]["environment"]:
            assert f"${{{name}:" in script

    def test_nothing_without_a_key_leaves_the_machine(self) -> None:
        for service in compose()["services"].values():
            for port in service.get("ports", []):
                assert port.startswith("127.0.0.1:")


class TestCollector:
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "otel" / "collector.yaml").read_text())
        return found

    def test_its_pipeline_names_what_is_there_and_guards_memory_first(self) -> None:
        config = self.config()
        [pipeline] = config["service"]["pipelines"].values()
        for kind in ("receivers", "processors", "exporters"):
            assert set(pipeline[kind]) == set(config[kind])
        assert pipeline["processors"] == ["memory_limiter", "tail_sampling", "batch"]

    def test_it_listens_where_the_compose_file_says(self) -> None:
        endpoint = self.config()["receivers"]["otlp"]["protocols"]["http"]["endpoint"]
        assert f"http://collector:{endpoint.rpartition(':')[2]}/v1/traces" == COLLECTOR
        assert f"MDCTR_TRACES={COLLECTOR} " in (ROOT / "docker-compose.yml").read_text()

    def test_what_is_slow_is_what_breaks_the_budget(self) -> None:
        [slow] = [
            each for each in self.config()["processors"]["tail_sampling"]["policies"] if "latency" in each
        ]
        budgets = yaml.safe_load((ROOT / "loadtest" / "budgets.yaml").read_text())
        assert slow["latency"]["threshold_ms"] == budgets["all"]["p99_ms"]


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([HADOLINT, *DOCKERFILES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


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
