"""The deployments of ``deploy/``: read and held against Dagster's own schemas, without a network or a cluster.

What needs a package of the optional group ``cluster`` (Celery, Kubernetes, PostgreSQL) is skipped without it and runs
in ``make test-cluster``.
"""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster._config import process_config
from dagster._config.field import resolve_to_config_type
from dagster._core.instance.config import dagster_instance_config_schema

from payout_pipeline.settings import VARIABLES, load_settings

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
INSTANCES = sorted(DEPLOY.rglob("dagster.yaml"))
WORKSPACES = sorted(DEPLOY.rglob("workspace.yaml"))
YAML_FILES = sorted([*DEPLOY.rglob("*.yaml"), *DEPLOY.rglob("*.yml")])

PIPELINE = set(VARIABLES.values())
# What Dagster, Celery, PostgreSQL, ClickHouse, S3 and Python read themselves, or only the deployment's own files do.
FOREIGN = {
    "DAGSTER_HOME",
    "DAGSTER_POSTGRES_HOST",
    "DAGSTER_POSTGRES_PORT",
    "DAGSTER_POSTGRES_DB",
    "DAGSTER_POSTGRES_USER",
    "DAGSTER_POSTGRES_PASSWORD",
    "CELERY_BROKER_URL",
    "CELERY_RESULT_BACKEND",
    "POSTGRES_DB",
    "POSTGRES_USER",
    "POSTGRES_PASSWORD",
    "INPUT_DIRECTORY",
    "INPUT_URL",
    "PYTHONPATH",
}
SECRETS = re.compile(r"PASSWORD|TOKEN|SECRET|LIMITER_URL|WEBHOOK|BROKER_URL|RESULT_BACKEND|ACCESS_KEY")
ASSIGNMENT = re.compile(r"^#?([A-Z][A-Z0-9_]*)=(.*)$", re.MULTILINE)


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def relative(path: Path) -> str:
    return str(path.relative_to(DEPLOY))


def accept(schema: Any, value: Any, what: str) -> Any:
    """The value as Dagster evaluates it, or a failure with Dagster's own words."""
    result = process_config(schema, value)
    assert result.success, f"{what}: {[error.message for error in result.errors or []]}"
    return result.value


def named_classes(value: Any) -> list[dict[str, Any]]:
    """Every ``{module, class, config}`` of a dagster.yaml."""
    if not isinstance(value, dict):
        return []
    own = [value] if {"module", "class"} <= value.keys() else []
    return own + [found for inner in value.values() for found in named_classes(inner)]


def load_class(entry: dict[str, Any]) -> Any:
    package = entry["module"].partition(".")[0]
    if package.startswith("dagster_"):
        pytest.importorskip(package, reason=f"{package} is in the optional group `cluster`")
    return getattr(importlib.import_module(entry["module"]), entry["class"])


@pytest.mark.parametrize("path", YAML_FILES, ids=relative)
def test_every_yaml_file_is_one_yaml_mapping(path: Path) -> None:
    assert isinstance(read(path), dict)


@pytest.mark.parametrize("path", INSTANCES, ids=relative)
def test_dagster_accepts_every_instance_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FOREIGN:
        monkeypatch.setenv(name, "5432" if name.endswith("PORT") else "some-value")
    accept(dagster_instance_config_schema(), read(path), relative(path))


@pytest.mark.parametrize("path", INSTANCES, ids=relative)
def test_every_class_of_an_instance_file_exists_and_takes_its_configuration(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in FOREIGN:
        monkeypatch.setenv(name, "5432" if name.endswith("PORT") else "some-value")
    for entry in named_classes(read(path)):
        found = load_class(entry)
        accept(resolve_to_config_type(found.config_type()), entry.get("config", {}), f"{entry['class']} of {path.name}")


@pytest.mark.parametrize("path", INSTANCES, ids=relative)
def test_dagster_keeps_its_state_in_postgresql_and_the_password_in_the_environment(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = pytest.importorskip("dagster_postgres.storage", reason="in the optional group `cluster`")
    for name in FOREIGN:
        monkeypatch.setenv(name, "5432" if name.endswith("PORT") else "some-value")
    configured = read(path)["storage"]["postgres"]
    accept(resolve_to_config_type(storage.DagsterPostgresStorage.config_type()), configured, relative(path))
    assert all(set(value) == {"env"} for value in configured["postgres_db"].values())


def test_an_unknown_key_of_an_instance_file_would_be_found() -> None:
    broken = {**read(INSTANCES[0]), "run_monitorin": {}}
    assert not process_config(dagster_instance_config_schema(), broken).success


@pytest.mark.parametrize("path", WORKSPACES, ids=relative)
def test_dagster_accepts_every_workspace_file(path: Path) -> None:
    from dagster._core.workspace.config_schema import process_workspace_config

    result = process_workspace_config(read(path))
    assert result.success, result.errors


@pytest.mark.parametrize("path", INSTANCES, ids=relative)
def test_no_deployment_multiplies_the_retries_or_loses_slots(path: Path) -> None:
    instance = read(path)
    assert instance["run_retries"]["retry_on_asset_or_op_failure"] is False
    # With a default limit Dagster inserts a pool's row at its first use, and on PostgreSQL the loser of a race fails.
    assert "pools" not in instance["concurrency"]
    assert instance["run_monitoring"]["enabled"] is True
    assert instance["run_monitoring"]["free_slots_after_run_end_seconds"] > 0
    outage_budget = load_settings({}).goldsky_outage_budget_seconds
    assert instance["run_monitoring"]["max_runtime_seconds"] > 2 * outage_budget


# --------------------------------------------------------------------------------------------------------- compose


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return read(DEPLOY / "compose/compose.yaml")


def test_compose_has_every_part_and_starts_them_in_order(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {"postgres", "clickhouse", "migrate", "code", "webserver", "daemon"}
    for name, service in services.items():
        for wanted, how in service.get("depends_on", {}).items():
            condition = how["condition"]
            assert wanted in services
            assert condition != "service_healthy" or "healthcheck" in services[wanted], f"{name} waits for {wanted}"
    assert services["code"]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert services["migrate"]["restart"] == "no"


def test_compose_publishes_only_the_ui_and_only_on_loopback(compose: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert published == {"webserver": ["127.0.0.1:3000:3000"]}


def test_compose_names_volumes_and_files_that_exist(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for mount in service.get("volumes", []):
            source = mount.partition(":")[0] if not mount.startswith("$") else "${…}"
            if source.startswith("./"):
                assert (DEPLOY / "compose" / source).is_file(), f"{name}: {source}"
            elif not source.startswith("$"):
                assert source in compose["volumes"], f"{name}: {source}"
    build = compose["services"]["migrate"]["build"]
    assert (DEPLOY / "compose" / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()


def test_compose_and_its_image_are_valid_by_the_schema_of_compose(tmp_path: Path) -> None:
    check = pytest.importorskip("check_jsonschema", reason="in the optional group `cluster-test`")
    from click.testing import CliRunner

    arguments = ["--builtin-schema", "vendor.compose-spec", str(DEPLOY / "compose/compose.yaml")]
    result = CliRunner().invoke(check.main, arguments)
    assert result.exit_code == 0, result.output


def test_the_image_is_built_from_files_that_exist_and_from_locked_packages() -> None:
    text = (DEPLOY / "compose/Dockerfile").read_text()
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    assert "--require-hashes" in text
    allowed = (DEPLOY / "compose/Dockerfile.dockerignore").read_text()
    assert all(f"!{name}" in allowed for name in ("pyproject.toml", "payout_pipeline", "deploy/requirements.lock"))


def test_the_image_has_the_versions_that_are_tested() -> None:
    def versions(path: Path) -> set[str]:
        return set(re.findall(r"^([a-z0-9][a-z0-9._-]*==\S+)", path.read_text(), re.MULTILINE))

    shipped, tested = versions(DEPLOY / "requirements.lock"), versions(ROOT / "requirements-cluster.lock")
    assert len(shipped) > 50
    assert shipped <= tested
    assert not {name for name in shipped if name.startswith(("moto==", "pytest=="))}


# ----------------------------------------------------------------------------------------------------- environment


def environment_files() -> list[Path]:
    return [DEPLOY / "compose/.env.example", DEPLOY / "celery/environment.example"]


def names_of_compose(compose: dict[str, Any]) -> set[str]:
    text = (DEPLOY / "compose/compose.yaml").read_text()
    given = {name for service in compose["services"].values() for name in service.get("environment", {})}
    return given | set(re.findall(r"\$\{([A-Z_]+)", text))


def test_every_name_of_an_environment_is_known_to_somebody(compose: dict[str, Any]) -> None:
    names = names_of_compose(compose) | set(read(DEPLOY / "kubernetes/configmap.yaml")["data"])
    for path in environment_files():
        names |= {name for name, _ in ASSIGNMENT.findall(path.read_text())}
    assert names - PIPELINE - FOREIGN == set()


def test_the_pipeline_accepts_each_environment_once_its_blanks_are_filled_in() -> None:
    filled = {
        "PAYOUT_RUNTIME_DIR": "s3://bucket/runtime",
        "PAYOUT_LIMITER_URL": "redis://:secret@host/0",
        "PAYOUT_ALERT_WEBHOOK": "https://hooks.example.com/1",
    }
    for path in environment_files():
        given = dict(ASSIGNMENT.findall(path.read_text()))
        values = {name: value or filled.get(name, "filled-in") for name, value in given.items()}
        assert load_settings(values).clickhouse_password is not None
    settings = load_settings(read(DEPLOY / "kubernetes/configmap.yaml")["data"])
    assert settings.runtime_dir.startswith("s3://")
    assert settings.workers == 16


def test_no_file_holds_a_secret(compose: dict[str, Any]) -> None:
    for path in environment_files():
        for name, value in ASSIGNMENT.findall(path.read_text()):
            assert not (SECRETS.search(name) and value), f"{path.name}: {name}"
    for name, service in compose["services"].items():
        for variable, value in service.get("environment", {}).items():
            assert not SECRETS.search(variable) or str(value).startswith("${"), f"{name}: {variable}"
    data = read(DEPLOY / "kubernetes/configmap.yaml")["data"]
    assert not [name for name in data if SECRETS.search(name)]
    for path in DEPLOY.rglob("*"):
        if path.is_file() and path.suffix != ".lock":
            assert not re.search(r"://[^/\s:@$]*:[^/\s@$]+@", path.read_text()), path


# ------------------------------------------------------------------------------------------------------ kubernetes

# The keys of Dagster's chart (1.13) that are used here, as its schema has them.
CHART = {
    "": "global generatePostgresqlPasswordSecret postgresql telemetry computeLogManager dagsterWebserver "
    "dagster-user-deployments dagsterDaemon runLauncher",
    "global": "postgresqlSecretName dagsterHome serviceAccountName celeryConfigSecretName",
    "postgresql": "image enabled postgresqlHost postgresqlUsername postgresqlPassword postgresqlDatabase "
    "postgresqlParams postgresqlScheme service",
    "dagsterWebserver": "replicaCount image service env envConfigMaps envSecrets resources enableReadOnly",
    "dagster-user-deployments": "enabled enableSubchart imagePullSecrets deployments",
    "dagsterDaemon": "enabled image runCoordinator heartbeatTolerance env envConfigMaps envSecrets resources "
    "runMonitoring runRetries",
    "dagsterDaemon.runMonitoring": "enabled startTimeoutSeconds cancelTimeoutSeconds pollIntervalSeconds "
    "maxResumeRunAttempts freeSlotsAfterRunEndSeconds",
    "dagsterDaemon.runRetries": "enabled maxRetries retryOnAssetOrOpFailure",
    "runLauncher.config.k8sRunLauncher": "image imagePullPolicy jobNamespace loadInclusterConfig kubeconfigFile "
    "envConfigMaps envSecrets envVars volumeMounts volumes labels failPodOnRunFailure resources schedulerName "
    "securityContext runK8sConfig",
    "runLauncher.config.k8sRunLauncher.runK8sConfig": "containerConfig podSpecConfig podTemplateSpecMetadata "
    "jobSpecConfig jobMetadata",
}


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    return read(DEPLOY / "kubernetes/values.yaml")


def inside(values: dict[str, Any], path: str) -> dict[str, Any]:
    for part in filter(None, path.split(".")):
        values = values[part]
    return values


@pytest.mark.parametrize("path", CHART, ids=lambda path: path or "top")
def test_the_helm_values_use_keys_that_the_chart_has(path: str, values: dict[str, Any]) -> None:
    assert set(inside(values, path)) <= set(CHART[path].split())


def launcher_config(values: dict[str, Any]) -> dict[str, Any]:
    """The launcher's configuration as the chart writes it into dagster.yaml."""
    given = inside(values, "runLauncher.config.k8sRunLauncher")
    snake = {
        "containerConfig": "container_config",
        "podSpecConfig": "pod_spec_config",
        "jobSpecConfig": "job_spec_config",
    }
    return {
        "load_incluster_config": given["loadInclusterConfig"],
        "job_namespace": "payout",
        "image_pull_policy": given["imagePullPolicy"],
        "service_account_name": "payout-dagster",
        "dagster_home": "/opt/dagster/dagster_home",
        "instance_config_map": "payout-dagster-instance",
        "postgres_password_secret": inside(values, "global")["postgresqlSecretName"],
        "env_config_maps": [entry["name"] for entry in given["envConfigMaps"]],
        "env_secrets": [entry["name"] for entry in given["envSecrets"]],
        "volumes": given["volumes"],
        "volume_mounts": given["volumeMounts"],
        "fail_pod_on_run_failure": given["failPodOnRunFailure"],
        "run_k8s_config": {snake[key]: value for key, value in given["runK8sConfig"].items()},
    }


def test_the_kubernetes_launcher_makes_the_job_that_is_meant(values: dict[str, Any]) -> None:
    launcher = pytest.importorskip("dagster_k8s", reason="in the optional group `cluster`").K8sRunLauncher
    from dagster_k8s.container_context import K8sContainerContext
    from dagster_k8s.job import DagsterK8sJobConfig, construct_dagster_k8s_job

    config = launcher_config(values)
    accept(resolve_to_config_type(launcher.config_type()), config, "K8sRunLauncher")
    keys = ("env_config_maps", "env_secrets", "volumes", "volume_mounts", "run_k8s_config")
    context = K8sContainerContext.create_from_config({"k8s": {key: config[key] for key in keys}})
    image = f"{values['dagsterWebserver']['image']['repository']}:{values['dagsterWebserver']['image']['tag']}"
    job = construct_dagster_k8s_job(
        DagsterK8sJobConfig(
            job_image=image,
            dagster_home=config["dagster_home"],
            instance_config_map=config["instance_config_map"],
            postgres_password_secret=config["postgres_password_secret"],
        ),
        args=["dagster", "api", "execute_run"],
        job_name="dagster-run-1",
        user_defined_k8s_config=context.run_k8s_config,
    ).to_dict()
    pod = job["spec"]["template"]["spec"]
    assert job["spec"]["backoff_limit"] == 0
    assert job["spec"]["active_deadline_seconds"] == 21600
    assert pod["restart_policy"] == "Never"
    assert pod["termination_grace_period_seconds"] == 60
    (container,), (fetching,) = pod["containers"], pod["init_containers"]
    assert container["image"] == fetching["image"] == image
    sources = [source["config_map_ref"] or source["secret_ref"] for source in container["env_from"]]
    assert [source["name"] for source in sources] == ["payout-pipeline", "payout-pipeline"]
    mounts = {mount["name"]: mount["mount_path"] for mount in container["volume_mounts"]}
    assert mounts["input"] == fetching["volume_mounts"][0]["mount_path"]
    path = read(DEPLOY / "kubernetes/configmap.yaml")["data"]["CONDITION_IDS_FILE"]
    assert path.startswith(mounts["input"])
    assert path in fetching["command"][-1]
    compile(fetching["command"][-1], "init container", "exec")
    json.dumps(container["resources"])


# ---------------------------------------------------------------------------------------------------------- celery


def test_the_celery_workers_find_their_settings_and_the_launcher_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dagster_celery", reason="in the optional group `cluster`")
    from celery.app.defaults import NAMESPACES, flatten
    from dagster_celery.config import TASK_EXECUTE_JOB_NAME

    monkeypatch.syspath_prepend(str(DEPLOY / "celery"))
    settings = importlib.import_module("dagster_celery_config")
    given = {name: getattr(settings, name) for name in vars(settings) if not name.startswith("_")}
    known = {name.lower() for name, _ in flatten(NAMESPACES)}
    assert set(given) <= known
    assert given["worker_disable_prefetch"] is True
    assert given["task_acks_late"] is False

    from dagster_celery.app import app

    assert TASK_EXECUTE_JOB_NAME in app.tasks


def test_the_units_start_programs_with_the_environment_that_is_documented() -> None:
    units = sorted((DEPLOY / "celery").glob("*.service"))
    assert len(units) == 3
    for unit in units:
        text = unit.read_text()
        assert "EnvironmentFile=/etc/payout-pipeline/environment\n" in text
        assert "--host 0.0.0.0" not in text
        for section in ("[Unit]", "[Service]", "[Install]"):
            assert text.count(section) == 1
    assert "payout@%%h" in (DEPLOY / "celery/payout-celery-worker.service").read_text()
