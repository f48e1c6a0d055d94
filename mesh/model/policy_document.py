"""ServicePolicy documents. What stands in none of them has the default that ``policy.py`` gives a reason for.

A subset without ``metadata`` would select nothing in particular, so each names at least one pair.
"""

from __future__ import annotations

from typing import Any, Final

from mesh.model.documents import Node, each
from mesh.model.duration import format_duration
from mesh.model.name import Name
from mesh.model.policy import AppProtocol, Limits, OutlierDetection, RetryBudgetPolicy, ServicePolicy, TlsPolicy

POLICY_API_VERSION: Final = "mesh.sidemesh.dev/v1"
POLICY_KIND: Final = "ServicePolicy"


def read_policy(spec: Node, name: Name) -> ServicePolicy:
    """The policy of the service ``name``; problems are noted in ``spec``."""
    spec.fields(
        ("subsets", "outlierDetection", "limits", "retryBudget", "connectTimeout", "appProtocol", "upgrades", "tls")
    )
    default = ServicePolicy(name)
    return ServicePolicy(
        name=name,
        subsets=_subsets(spec.at("subsets")),
        outlier_detection=_outlier(spec.at("outlierDetection"), default.outlier_detection),
        limits=_limits(spec.at("limits"), default.limits),
        retry_budget=_budget(spec.at("retryBudget"), default.retry_budget),
        connect_timeout_s=spec.at("connectTimeout").seconds(default.connect_timeout_s),
        app_protocol=spec.at("appProtocol").word(AppProtocol, None),
        tls=_tls(spec.at("tls")) if spec.at("tls").is_given else None,
        upgrades=each(spec.at("upgrades").items(), lambda token: token.text().lower()),
    )


def _subsets(node: Node) -> dict[str, dict[str, str]]:
    subsets: dict[str, dict[str, str]] = {}
    for item in node.items():
        item.fields(("name", "metadata"), is_required=True)
        name = item.at("name").text()
        if name in subsets:
            item.at("name").complain(f"{name!r} is defined twice")
        subsets[name] = {key: value.text() for key, value in item.at("metadata").pairs()}
    return subsets


def _outlier(node: Node, default: OutlierDetection) -> OutlierDetection:
    node.fields(("consecutiveFailures", "baseEjection", "maxEjectionPercent", "panicPercent"))
    return OutlierDetection(
        node.at("consecutiveFailures").number(default.consecutive_failures),
        node.at("baseEjection").seconds(default.base_ejection_s),
        node.at("maxEjectionPercent").number(default.max_ejection_percent),
        node.at("panicPercent").number(default.panic_percent),
    )


def _limits(node: Node, default: Limits) -> Limits:
    node.fields(("maxConnections", "maxPendingRequests", "maxRequests"))
    return Limits(
        node.at("maxConnections").number(default.max_connections),
        node.at("maxPendingRequests").number(default.max_pending_requests),
        node.at("maxRequests").number(default.max_requests),
    )


def _budget(node: Node, default: RetryBudgetPolicy) -> RetryBudgetPolicy:
    node.fields(("percent", "minPerSecond"))
    return RetryBudgetPolicy(
        node.at("percent").number(default.percent), node.at("minPerSecond").number(default.min_per_s)
    )


def _tls(node: Node) -> TlsPolicy:
    node.fields(("serverName", "caFile", "certificateFile", "keyFile"))
    return TlsPolicy(
        node.at("serverName").text("").lower(),
        node.at("caFile").text(""),
        node.at("certificateFile").text(""),
        node.at("keyFile").text(""),
    )


def policy_spec(policy: ServicePolicy) -> dict[str, Any]:
    """The ``spec`` of a policy, every value written out."""
    outlier, limits, budget = policy.outlier_detection, policy.limits, policy.retry_budget
    spec: dict[str, Any] = {}
    if policy.subsets:
        spec["subsets"] = [
            {"name": name, "metadata": dict(sorted(metadata.items()))}
            for name, metadata in sorted(policy.subsets.items())
        ]
    spec["outlierDetection"] = {
        "consecutiveFailures": outlier.consecutive_failures,
        "baseEjection": format_duration(outlier.base_ejection_s),
        "maxEjectionPercent": outlier.max_ejection_percent,
        "panicPercent": outlier.panic_percent,
    }
    spec["limits"] = {
        "maxConnections": limits.max_connections,
        "maxPendingRequests": limits.max_pending_requests,
        "maxRequests": limits.max_requests,
    }
    spec["retryBudget"] = {"percent": budget.percent, "minPerSecond": budget.min_per_s}
    spec["connectTimeout"] = format_duration(policy.connect_timeout_s)
    if policy.app_protocol is not None:
        spec["appProtocol"] = policy.app_protocol.value
    if policy.tls is not None:
        tls = policy.tls
        said = {
            "serverName": tls.server_name,
            "caFile": tls.ca_file,
            "certificateFile": tls.certificate_file,
            "keyFile": tls.key_file,
        }
        spec["tls"] = {key: value for key, value in said.items() if value}
    if policy.upgrades:
        spec["upgrades"] = list(policy.upgrades)
    return spec
