"""What deploy/, compose.yaml and the Dockerfile say of the product is true of it, and the forms that they have to have.

Nothing here needs Docker or a cluster: settings go through the product's own code, manifests through the types of a
Kubernetes client, expressions through PromQL's grammar.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from bedplate import __version__, compose
from bedplate.compose.serving import INTERNAL_OFFSET
from bedplate.compose.shape import CALLS, HOSTS, NOTIFICATION_WORKER
from bedplate.kernel import facade
from bedplate.kernel.clock import Clock
from bedplate.kernel.settings import OperatorError, Settings, environment_names, load
from tests.processes import Server
from tests.world import World

ROOT = Path(__file__).parent.parent
KUBERNETES = ROOT / "deploy" / "kubernetes"
PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "commerce.json").read_text())
GUIDE = (ROOT / "docs" / "guides" / "split.md").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
MANIFESTS = [
    document for path in sorted(KUBERNETES.glob("*.yaml")) for document in yaml.safe_load_all(path.read_text())
]

SERVICES = tuple(HOSTS)
# What an operator fills in, and how the two forms ask for it.
RANDOM = "q7Xv0sJmK4tWb9ZcR2yNf8Lh5Gd1Pa6EuTiOk3BxSw"
PLACEHOLDER = "replace-me"
FILLED = {
    **dict.fromkeys(re.findall(r"\$\{(\w+):\?", (ROOT / "compose.yaml").read_text()), RANDOM),
    "FRONTEND_URL": "https://shop.example.com",
}
ASKED = re.compile(r"\$(?:\$|\{(\w+)(?::([-?])([^}]*))?\})")


def interpolated(text: str, given: Mapping[str, str]) -> str:
    """As Docker Compose reads a value. Raises KeyError for one that is asked for and not given."""

    def one(found: re.Match[str]) -> str:
        name, kind, rest = found.groups()
        if name is None:
            return "$"
        if kind == "?" and not given.get(name):
            raise KeyError(name)
        return given.get(name) or (rest if kind == "-" else "")

    return ASKED.sub(one, text)


def of_compose(name: str, given: Mapping[str, str]) -> dict[str, str]:
    environment = COMPOSE["services"][name].get("environment", {})
    return {key: interpolated(value, given) for key, value in environment.items()}


def of_kubernetes(name: str, given: Mapping[str, str]) -> dict[str, str]:
    """ConfigMap, secrets and variables of a container, in the order in which they count."""
    container = container_of(name)
    found: dict[str, str] = {}
    for source in container["envFrom"]:
        kind, key = ("ConfigMap", "configMapRef") if "configMapRef" in source else ("Secret", "secretRef")
        manifest = named(kind, source[key]["name"])
        found |= manifest.get("data", {}) | manifest.get("stringData", {})
    found |= {each["name"]: each["value"] for each in container.get("env", [])}
    return {key: value.replace(PLACEHOLDER, given.get("API_SECRET_KEY", PLACEHOLDER)) for key, value in found.items()}


FORMS = {"compose": of_compose, "kubernetes": of_kubernetes}
every_process = pytest.mark.parametrize(("form", "name"), [(form, name) for form in FORMS for name in SERVICES])


def named(kind: str, name: str) -> Any:
    return next(each for each in MANIFESTS if each["kind"] == kind and each["metadata"]["name"] == name)


def container_of(name: str) -> Any:
    (container,) = named("Deployment", name)["spec"]["template"]["spec"]["containers"]
    return container


def pod_ports(name: str) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container_of(name)["ports"]}


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Settings of a process that has this environment and no other."""

    def load_from(environment: Mapping[str, str]) -> Settings:
        monkeypatch.chdir(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(os, "environ", dict(environment))
            return load()

    return load_from


def home_of(unit: str) -> str:
    return next(name for name, units in HOSTS.items() if unit in units)


def called_by(name: str) -> set[str]:
    return set(CALLS[name]) - set(HOSTS[name])


# Processes


@every_process
def test_a_process_starts_with_its_environment_and_hosts_its_own(form: str, name: str, loaded: Any) -> None:
    settings = loaded(FORMS[form](name, FILLED))
    shape = compose.shape_of(name, settings)
    assert shape.here == set(HOSTS[name])
    assert set(shape.elsewhere) == called_by(name)
    assert settings.is_production
    assert settings.auth_required


@every_process
def test_a_process_is_given_names_that_it_knows(form: str, name: str) -> None:
    known = {each for names in environment_names().values() for each in names.split(", ")} | {"API_HOST"}
    given = set(FORMS[form](name, FILLED))
    assert {each for each in given - known if not each.startswith("BEDPLATE_ELSEWHERE__")} == set()


@every_process
def test_a_process_listens_where_the_product_says(form: str, name: str, loaded: Any) -> None:
    settings = loaded(FORMS[form](name, FILLED))
    listening = {each.port for each in compose.served_by(name, settings)}
    assert FORMS[form](name, FILLED)["API_HOST"] == "0.0.0.0"
    port = compose.PLACES[name].port
    if form == "kubernetes":
        assert container_of(name)["args"] == ["serve", name]
        assert set(pod_ports(name).values()) == listening
        assert pod_ports(name)["http"] == port
        service = [{"name": each, "port": number, "targetPort": each} for each, number in pod_ports(name).items()]
        assert named("Service", name)["spec"] == {"selector": {"app.kubernetes.io/name": name}, "ports": service}
    else:
        assert COMPOSE["services"][name]["command"] == ["serve", name]
        published = [] if name == NOTIFICATION_WORKER else [f"127.0.0.1:{port}:{port}"]
        assert COMPOSE["services"][name].get("ports", []) == published


@every_process
def test_the_addresses_of_the_others_lead_to_where_they_listen(form: str, name: str, loaded: Any) -> None:
    for unit, address in loaded(FORMS[form](name, FILLED)).elsewhere.items():
        home = home_of(unit)
        host, _, port = address.removeprefix("http://").partition(":")
        assert int(port) == compose.PLACES[home].port + INTERNAL_OFFSET
        assert host == home
        if form == "kubernetes":
            assert pod_ports(home)["internal"] == int(port)


@pytest.mark.parametrize("form", FORMS)
def test_each_has_a_database_of_its_own_and_all_have_the_rest_in_common(form: str, loaded: Any) -> None:
    found = [loaded(FORMS[form](name, FILLED)) for name in SERVICES]
    urls = [each.database for each in found]
    assert all(url.startswith("postgresql://") for url in urls)
    assert len({url.partition("@")[2] for url in urls}) == len(SERVICES)
    assert len({url.partition(":")[2].partition(":")[0] for url in urls}) == len(SERVICES), "each has its own role"
    assert len({each.secret.get_secret_value() for each in found}) == 1
    (redis,), (broker,) = (
        {getattr(each, which).get_secret_value() for each in found} for which in ("redis_url", "broker_url")
    )
    assert (
        redis.partition("@")[2] != broker.partition("@")[2] or redis.partition("://")[2] != broker.partition("://")[2]
    )


@pytest.mark.parametrize("form", FORMS)
def test_mail_and_cards_are_the_business_of_one_process_each(form: str) -> None:
    assert [name for name in SERVICES if "SMTP_URL" in FORMS[form](name, FILLED)] == [NOTIFICATION_WORKER]
    assert [name for name in SERVICES if "STRIPE_SECRET_KEY" in FORMS[form](name, FILLED)] == ["payment-service"]


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_starts_with_what_the_example_of_the_secrets_has_in_it(name: str, loaded: Any) -> None:
    with pytest.raises(OperatorError, match="API_SECRET_KEY"):
        loaded(of_kubernetes(name, {}))


def test_no_secret_has_a_default() -> None:
    for variable in FILLED:
        with pytest.raises(KeyError, match=variable):
            for name in COMPOSE["services"]:
                of_compose(name, FILLED | {variable: ""})
    text = "\n".join(path.read_text() for path in (ROOT / "compose.yaml", *KUBERNETES.glob("*.yaml")))
    given = re.findall(r"^ *(\w*(?:PASSWORD|SECRET_KEY)): (\S+)", text, re.MULTILINE)
    assert len(given) > len(FILLED)
    for name, value in given:
        assert value == PLACEHOLDER or value.startswith((f"${{{name}:?", f"${{{name}:-}}")), name
    assert re.findall(r"(?i)password|secret", DOCKERFILE.partition("\nFROM")[2]) == []


# Docker


def test_the_compose_file_is_one_by_its_specification() -> None:
    pytest.importorskip("check_jsonschema", reason="needs check-jsonschema, which brings the schema")
    import jsonschema_rs

    schema = files("check_jsonschema.builtin_schemas.vendor").joinpath("compose-spec.json").read_text()
    errors = jsonschema_rs.validator_for(json.loads(schema)).iter_errors(COMPOSE)
    assert [f"{error.instance_path}: {error.message}" for error in errors] == []


def test_only_the_documented_ports_are_published_and_on_this_machine_alone() -> None:
    published = {name: each["ports"] for name, each in COMPOSE["services"].items() if "ports" in each}
    assert set(published) == set(SERVICES) - {NOTIFICATION_WORKER}
    for store in set(COMPOSE["services"]) - set(SERVICES):
        assert COMPOSE["services"][store]["networks"] == ["inside"]
    assert COMPOSE["networks"]["inside"]["internal"] is True


def test_every_container_is_checked_restarted_bounded_and_stopped_in_peace() -> None:
    drain = Settings.model_fields["drain_seconds"].default
    for name, each in COMPOSE["services"].items():
        assert each["restart"] == "unless-stopped"
        assert each["logging"]["options"].keys() == {"max-size", "max-file"}
        assert each["healthcheck"]["test"][0] == "CMD"
        assert all(on["condition"] == "service_healthy" for on in each.get("depends_on", {}).values())
        if name in SERVICES:
            assert int(each["stop_grace_period"].removesuffix("s")) >= drain + 5
            assert each["image"] == f"bedplate:{__version__}"
            assert each["read_only"]
            port, path = each["healthcheck"]["test"][-2:]
            assert liveness(name, int(port), path)


def liveness(name: str, port: int, path: str) -> bool:
    """Whether this answers as long as the process does; /health and /ready of the services tell of what they need."""
    if name == NOTIFICATION_WORKER:
        return (port, path) == (compose.PLACES[name].port, "/metrics")
    return (port, path) == (compose.PLACES[name].port + INTERNAL_OFFSET, facade.HEALTH)


def test_the_broker_keeps_what_it_was_given_and_refuses_when_it_is_full() -> None:
    command = COMPOSE["services"]["broker"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert (options["--appendonly"], options["--maxmemory-policy"]) == ("yes", "noeviction")
    assert "--maxmemory" in options
    assert COMPOSE["services"]["broker"]["volumes"] == ["broker:/data"]


def test_the_first_start_makes_the_databases_that_the_services_use() -> None:
    statements = COMPOSE["configs"]["databases"]["content"]
    for name in SERVICES:
        url = COMPOSE["services"][name]["environment"]["DATABASE_URL"]
        role, password, database = re.fullmatch(
            r"postgresql://(\w+):\$\{(\w+):\?.*\}@postgres:5432/(\w+)", url
        ).groups()  # type: ignore[union-attr]
        made = (
            f"\\getenv password {password}",
            f"CREATE ROLE {role} LOGIN PASSWORD :'password';",
            f"CREATE DATABASE {database} OWNER {role};",
            f"REVOKE ALL ON DATABASE {database} FROM PUBLIC;",
        )
        assert "\n".join(made) in statements
        assert password in COMPOSE["services"]["postgres"]["environment"]


def test_the_image_takes_what_is_locked_and_runs_as_nobody() -> None:
    instructions = [line.split(maxsplit=1) for line in DOCKERFILE.splitlines() if re.match(r"[A-Z]+ ", line)]
    *_, last = (number for number, (word, _) in enumerate(instructions) if word == "FROM")
    final = dict(instructions[last:])
    assert {value.split()[0] for word, value in instructions if word == "FROM"} == {"python:3.11-slim"}
    assert final["STOPSIGNAL"] == "SIGTERM"
    assert json.loads(final["ENTRYPOINT"]) == ["bedplate"]
    assert final["USER"] == "10001:10001"
    assert final["VOLUME"] == "/var/lib/bedplate"
    installs = [step for step in re.split(r"&&|\n", DOCKERFILE) if re.search(r"\bpip install\b", step)]
    assert len(installs) == 4
    # The last one is the project itself.
    assert all("--require-hashes" in step or "--offline --no-deps" in step for step in installs)
    assert {word for word, _ in instructions} & {"ARG", "ADD"} == set()


def test_what_the_image_copies_is_let_through_and_nothing_else_is() -> None:
    copied = [words.split()[:-1] for words in re.findall(r"^COPY (?!--)(.*)$", DOCKERFILE, re.MULTILINE)]
    sources = {word for words in copied for word in words}
    assert all((ROOT / source).exists() for source in sources)
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == sources


def test_the_health_check_tells_a_server_from_none(tmp_path: Path) -> None:
    (words,) = re.findall(r"HEALTHCHECK .*CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    command, code, port, path = json.loads(words)[1:]
    assert (command, port, path) == ("-c", "8000", "/")
    assert COMPOSE["services"]["user-service"]["healthcheck"]["test"][3] == code

    def check(*place: str) -> int:
        return subprocess.run([sys.executable, "-c", code, *place], stderr=subprocess.DEVNULL, timeout=20).returncode

    with Server(tmp_path, "up") as server:
        assert check(str(server.port), path) == 0
        assert check(str(server.port), "/nowhere") != 0
    assert check(str(server.port), path) != 0


# Kubernetes


@pytest.mark.parametrize(
    "manifest", MANIFESTS, ids=lambda each: f"{each['kind']}-{each.get('metadata', {}).get('name')}"
)
def test_a_manifest_has_only_fields_that_kubernetes_knows(manifest: Any) -> None:
    codecs = pytest.importorskip("lightkube.codecs", reason="needs lightkube, which has Kubernetes' types")
    if manifest["kind"] == "Kustomization":
        beside = {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml", "secret.example.yaml"}
        assert set(manifest["resources"]) == beside
        assert [image["newTag"] for image in manifest["images"] if image["name"] == "bedplate"] == [__version__]
        return
    # A wrong type or a missing field is refused; a field that is unknown does not come back.
    assert codecs.from_dict(manifest).to_dict() == manifest


def test_a_misspelt_field_would_be_noticed() -> None:
    codecs = pytest.importorskip("lightkube.codecs", reason="needs lightkube, which has Kubernetes' types")
    service = named("Service", "user-service")
    wrong = {**service, "spec": {**service["spec"], "selectors": {}}}
    assert codecs.from_dict(wrong).to_dict() != wrong


@pytest.mark.parametrize("name", SERVICES)
def test_a_pod_is_found_probed_and_stopped_in_peace(name: str) -> None:
    spec = named("Deployment", name)["spec"]
    template, container = spec["template"], container_of(name)
    label = {"app.kubernetes.io/name": name}
    assert (
        spec["selector"]["matchLabels"]
        == named("PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"]
        == label
    )
    assert template["metadata"]["labels"] == label | {"app.kubernetes.io/part-of": "bedplate"}
    assert container["image"] == "bedplate"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        place = container[probe]["httpGet"]
        assert liveness(name, pod_ports(name)[place["port"]], place["path"])
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = Settings.model_fields["drain_seconds"].default
    assert template["spec"]["terminationGracePeriodSeconds"] >= pause + drain + 5
    scraped = {key.partition("/")[2]: value for key, value in template["metadata"]["annotations"].items()}
    assert scraped == {"scrape": "true", "port": str(compose.PLACES[name].port), "path": "/metrics"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_pod_may_run_where_only_the_restricted_may(name: str) -> None:
    pod, container = named("Deployment", name)["spec"]["template"]["spec"], container_of(name)
    assert named("Namespace", "bedplate")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert f"USER {pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}\n" in DOCKERFILE
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/tmp", "/var/lib/bedplate"}


def policies() -> Iterator[tuple[set[str], Any]]:
    """Each rule for what comes in, with the services that it holds for."""
    for policy in (each["spec"] for each in MANIFESTS if each["kind"] == "NetworkPolicy"):
        for rule in policy.get("ingress", []):
            yield chosen(policy["podSelector"]), rule


def chosen(selector: Any) -> set[str]:
    by_name = selector.get("matchLabels", {}).get("app.kubernetes.io/name")
    values = [each["values"] for each in selector.get("matchExpressions", [])]
    return {by_name} if by_name else set(values[0]) if values else set(SERVICES)


def test_the_modules_of_a_service_answer_those_that_call_them_and_nobody_else() -> None:
    assert named("NetworkPolicy", "nothing-else")["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name in set(SERVICES) - {NOTIFICATION_WORKER}:
        rules = [rule for services, rule in policies() if name in services and rule["ports"] == [{"port": "internal"}]]
        ((source,),) = (rule["from"] for rule in rules)
        callers = {caller for caller in SERVICES if any(home_of(unit) == name for unit in called_by(caller))}
        assert chosen(source["podSelector"]) == callers
    for _, rule in policies():
        assert rule["from"]
        assert rule["ports"] in ([{"port": "http"}], [{"port": "internal"}])


def routes_of(name: str) -> set[tuple[str, str]]:
    system = next(
        each for each in compose.blueprint(Settings(_env_file=None, secret=RANDOM), Clock()) if each.name == name
    )
    return {(method, route.path) for route in system.app.routes for method in getattr(route, "methods", None) or ()}


def test_the_ingress_leads_to_the_documented_paths_and_to_no_others() -> None:
    (rule,) = named("Ingress", "bedplate")["spec"]["rules"]
    leads = {each["path"]: each["backend"]["service"] for each in rule["http"]["paths"]}
    used = set()
    for name in SERVICES:
        for _, path in routes_of(name):
            found = [prefix for prefix in leads if path == prefix or path.startswith(f"{prefix}/")]
            if path.startswith("/api/"):
                assert [leads[prefix] for prefix in found] == [{"name": name, "port": {"name": "http"}}], path
                used |= set(found)
            else:
                assert found == [], path
    assert used == set(leads)


# Prometheus, Grafana


def test_prometheus_asks_each_service_at_its_own_port() -> None:
    found = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    targets = {job["job_name"]: job["static_configs"] for job in found["scrape_configs"]}
    assert targets == {name: [{"targets": [f"{name}:{compose.PLACES[name].port}"]}] for name in SERVICES}
    assert all((PROMETHEUS / name).exists() for name in found["rule_files"])


def expressions() -> Iterator[str]:
    for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"].replace("$__rate_interval", "5m").replace("$group", "job")


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Each series that a PromQL expression reads, with the labels that it is chosen or grouped by."""
    promql = pytest.importorskip("promql_parser", reason="needs promql-parser, PromQL's grammar")
    found, grouped = [], set()

    def visit(node: Any) -> None:
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            grouped.update(node.modifier.labels)
        found.append(getattr(node, "vector_selector", node))

    promql.walk(promql.parse(expression), visit)
    for node in found:
        if isinstance(node, promql.VectorSelector):
            yield node.name, grouped | {matcher.name for matcher in node.matchers.matchers}


DOCUMENTED = re.findall(
    r"\w+",
    """http_requests_total http_request_duration_seconds events_published_total database_connections_active
    user_registrations_total user_verifications_total database_queries_duration_seconds
    orders_created_total order_value_histogram mongo_operations_duration_seconds
    payments_processed_total payment_success_rate circuit_breaker_state
    notifications_sent_total notification_processing_seconds events_processed_total""",
)


@pytest.mark.parametrize("world", ["sqlite"], indirect=True)
async def test_every_figure_that_is_looked_at_is_on_a_page(world: World) -> None:
    labels = {"up": set[str]()}
    for name in SERVICES:
        page = (await world.client(name).get("/metrics")).text
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                labels.setdefault(sample.name, set()).update(sample.labels)
    read = [(expression, *each) for expression in expressions() for each in selectors(expression)]
    assert len(read) > 30
    assert [each for each in read if each[1] not in labels] == []
    assert [each for each in read if not each[2] <= labels[each[1]] | {"job", "instance"}] == []
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for _, name, _ in read}
    assert set(DOCUMENTED) - shown == set()


def test_the_dashboard_can_be_imported() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert {"datasource", "group"} == variables
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["type"] == "row" or (panel["targets"] and panel["datasource"]["uid"] == "${datasource}")


# The guide


@pytest.mark.parametrize("name", SERVICES)
def test_the_commands_of_the_guide_start_a_process_that_hosts_its_own(name: str, loaded: Any) -> None:
    shell = "\n".join(re.findall(r"^```sh\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    common = dict(re.findall(r"^export (\w+)=(\S+)", shell, re.MULTILINE))
    (function,) = re.findall(rf"^(\w+) bedplate serve {name}\b", shell, re.MULTILINE)
    (words,) = re.findall(rf'^{function}\(\) \{{ (.*) "\$@"; \}}$', shell, re.MULTILINE)
    own = dict(word.split("=", 1) for word in words.split())
    settings = loaded(common | {"API_SECRET_KEY": RANDOM} | own)
    shape = compose.shape_of(name, settings)
    assert (shape.here, set(shape.elsewhere)) == (set(HOSTS[name]), called_by(name))
    for unit, address in shape.elsewhere.items():
        assert address == f"http://127.0.0.1:{compose.PLACES[home_of(unit)].port + INTERNAL_OFFSET}"


def test_the_guide_fills_in_every_secret_that_compose_asks_for() -> None:
    (listed,) = re.findall(r"for name in ([A-Z_ \\\n]+); do", GUIDE)
    assert set(listed.replace("\\", "").split()) | {"FRONTEND_URL"} == set(FILLED)
