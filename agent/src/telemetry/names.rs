//! Every metric: its name, type and meaning. Base units; labels are bounded by the configuration and never hold a
//! client's address.

/// A family of samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricFamily {
    pub name: &'static str,
    pub kind: MetricKind,
    pub help: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
    Histogram,
    /// A sum and a count, without quantiles.
    Summary,
}

impl MetricKind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Summary => "summary",
        }
    }
}

const fn family(name: &'static str, kind: MetricKind, help: &'static str) -> MetricFamily {
    MetricFamily { name, kind, help }
}

// Labels: service, group, backend.
pub const CONNECTIONS_TOTAL: MetricFamily = family(
    "sluice_connections_total",
    MetricKind::Counter,
    "Connections, connected datagram sockets and datagram flows that were given this backend.",
);
// Labels: service, backend, state (connecting, active).
pub const CONNECTIONS: MetricFamily = family(
    "sluice_connections",
    MetricKind::Gauge,
    "Connections now: connecting (SYN sent, no answer yet) or active (established and not ended).",
);
// Labels: service, backend, reason (refused, timed_out, unreachable, abandoned); with an empty backend no_backend.
pub const CONNECT_FAILURES_TOTAL: MetricFamily = family(
    "sluice_connect_failures_total",
    MetricKind::Counter,
    "Connections that were never established; reason no_backend, without a backend, found none open.",
);
// Labels: service.
pub const CONNECT_DURATION_SECONDS: MetricFamily =
    family("sluice_connect_duration_seconds", MetricKind::Histogram, "Time from SYN to established, per service.");
// Labels: service.
pub const CONNECTION_DURATION_SECONDS: MetricFamily = family(
    "sluice_connection_duration_seconds",
    MetricKind::Histogram,
    "Time from established to closed, per service.",
);
// Labels: service, backend.
pub const RESETS_TOTAL: MetricFamily = family(
    "sluice_resets_total",
    MetricKind::Counter,
    "Established connections that ended by a reset from the backend.",
);
// Labels: service, backend.
pub const RETRANSMITS_TOTAL: MetricFamily =
    family("sluice_retransmits_total", MetricKind::Counter, "Segments that were sent again to this backend.");
// Labels: service, backend.
pub const EARLY_RESETS_TOTAL: MetricFamily = family(
    "sluice_early_resets_total",
    MetricKind::Counter,
    "Established connections that ended by a reset from the backend before its first byte.",
);
// Labels: service, backend.
pub const UNANSWERED_TOTAL: MetricFamily =
    family("sluice_unanswered_total", MetricKind::Counter, "SYNs to this backend that had to be sent again.");
// Labels: service, backend; only of services with `turnTime: true`.
pub const TURN_SECONDS: MetricFamily = family(
    "sluice_turn_seconds",
    MetricKind::Histogram,
    "Time from the last byte of a request to the first byte of its answer, as the caller's kernel sees it.",
);
// Labels: service, backend.
pub const RTT_SECONDS: MetricFamily = family(
    "sluice_rtt_seconds",
    MetricKind::Summary,
    "Smoothed round-trip time to this backend, read at the handshake and at the end of each connection.",
);
// Labels: service, backend.
pub const BACKEND_WEIGHT: MetricFamily =
    family("sluice_backend_weight", MetricKind::Gauge, "Weight that the document gives to this backend.");
// Labels: service, backend.
pub const BACKEND_EFFECTIVE_WEIGHT: MetricFamily =
    family("sluice_backend_effective_weight", MetricKind::Gauge, "Weight after zero and every other factor.");
// Labels: service, backend.
pub const BACKEND_HEALTHY: MetricFamily = family(
    "sluice_backend_healthy",
    MetricKind::Gauge,
    "1 while probes, reports and rules have nothing against this backend; 0 while it is not ready or ejected.",
);
// Labels: service, backend, reason (probe, report, outlier).
pub const BACKEND_UNHEALTHY: MetricFamily = family(
    "sluice_backend_unhealthy",
    MetricKind::Gauge,
    "1 for each reason that is held against this backend; no sample where there is none.",
);
// Labels: service.
pub const SERVICE_PANIC: MetricFamily = family(
    "sluice_service_panic",
    MetricKind::Gauge,
    "1 while so few of the service's backends are healthy that all of them serve.",
);
// Labels: service, backend.
pub const BACKEND_WARMUP_RATIO: MetricFamily = family(
    "sluice_backend_warmup_ratio",
    MetricKind::Gauge,
    "Part of its weight that a backend has while it warms up; no sample for one that is warm.",
);
// Labels: service.
pub const EJECTIONS_ACTIVE: MetricFamily = family(
    "sluice_ejections_active",
    MetricKind::Gauge,
    "Backends that rules have ejected, those on trial included; only of services with such rules.",
);
// Labels: service, backend, kind (desired, programmed, observed, expected).
pub const TRAFFIC_SHARE_RATIO: MetricFamily = family(
    "sluice_traffic_share_ratio",
    MetricKind::Gauge,
    "Share of the service's new connections: desired by the document, programmed in the kernel's table, observed in the last choices, and expected of the same choices by the tables that made them.",
);
pub const ZERO_DURATION_SECONDS: MetricFamily = family(
    "sluice_zero_duration_seconds",
    MetricKind::Histogram,
    "Time from the request of a zero to the kernel's acknowledgement.",
);
pub const DRAIN_DURATION_SECONDS: MetricFamily = family(
    "sluice_drain_duration_seconds",
    MetricKind::Histogram,
    "Time from the request of a drain to its end, drained or at its deadline.",
);
// Labels: reason (idle, deadline, inbound).
pub const DRAIN_CLOSED_CONNECTIONS_TOTAL: MetricFamily = family(
    "sluice_drain_closed_connections_total",
    MetricKind::Counter,
    "Connections that drains have closed: idle ones, what was left at the deadline, idle ones that a local backend had accepted.",
);
pub const SIGNALS_LOST_TOTAL: MetricFamily = family(
    "sluice_signals_lost_total",
    MetricKind::Counter,
    "Signals of failing backends that found no room on their way to the agent, which then learns of them by a look.",
);
pub const MONITOR_WATCHERS: MetricFamily =
    family("sluice_monitor_watchers", MetricKind::Gauge, "Who watches decisions now (sluice monitor).");
pub const MONITOR_DECISIONS_TOTAL: MetricFamily = family(
    "sluice_monitor_decisions_total",
    MetricKind::Counter,
    "Decisions that the programs told, after their own filter, while somebody watched.",
);
pub const MONITOR_LOST_TOTAL: MetricFamily = family(
    "sluice_monitor_lost_total",
    MetricKind::Counter,
    "Decisions that found no room on their way to the agent, or from there to a watcher.",
);
// Labels: program.
pub const PROGRAM_ATTACHED: MetricFamily = family(
    "sluice_program_attached",
    MetricKind::Gauge,
    "1 while the kernel runs this program for the processes of the cgroup.",
);
// Labels: kind (program, pin).
pub const ATTACHMENTS_LOST_TOTAL: MetricFamily = family(
    "sluice_attachments_lost_total",
    MetricKind::Counter,
    "Programs that were found detached, and pins that were found missing.",
);
// Labels: program, verdict.
pub const VERDICTS_TOTAL: MetricFamily =
    family("sluice_verdicts_total", MetricKind::Counter, "Ways out of the eBPF programs that were taken.");
// Labels: map.
pub const MAP_ENTRIES: MetricFamily =
    family("sluice_map_entries", MetricKind::Gauge, "Entries in use of a kernel table.");
// Labels: map.
pub const MAP_MAX_ENTRIES: MetricFamily =
    family("sluice_map_max_entries", MetricKind::Gauge, "Size of a kernel table, in entries.");
pub const CONFIG_GENERATION: MetricFamily =
    family("sluice_config_generation", MetricKind::Gauge, "Revision of the desired state; grows with every change.");
pub const CONFIG_APPLY_DURATION_SECONDS: MetricFamily = family(
    "sluice_config_apply_duration_seconds",
    MetricKind::Histogram,
    "Time from the request of a change to the kernel's acknowledgement.",
);
// Labels: service, rule.
pub const EJECTIONS_TOTAL: MetricFamily =
    family("sluice_ejections_total", MetricKind::Counter, "Ejections of backends, by the rule that was broken.");
pub const KERNEL_ERRORS_TOTAL: MetricFamily = family(
    "sluice_kernel_errors_total",
    MetricKind::Counter,
    "Writes to the kernel's tables, or to the store, that failed; they are undone or tried again.",
);
// Labels: source (api, file).
pub const CONFIG_ERRORS_TOTAL: MetricFamily =
    family("sluice_config_errors_total", MetricKind::Counter, "Changes and documents that could not be used.");
// Labels: service, reason (backendUnready, backendReady, ejected, trialStarted, ejectionEnded, panicStarted, panicEnded).
pub const HEALTH_CHANGES_TOTAL: MetricFamily = family(
    "sluice_health_changes_total",
    MetricKind::Counter,
    "Changes of backends' health, and of services' panics, by the kind of their event.",
);
// Labels: version.
pub const BUILD_INFO: MetricFamily =
    family("sluice_build_info", MetricKind::Gauge, "1, with the version of the agent.");
// Labels: kind (tcp, http, exec), result (success, failure).
pub const PROBES_TOTAL: MetricFamily =
    family("sluice_probes_total", MetricKind::Counter, "Probes of readiness that have ended.");
// Labels: kind (tcp, http, exec).
pub const PROBE_DURATION_SECONDS: MetricFamily =
    family("sluice_probe_duration_seconds", MetricKind::Histogram, "Time from the beginning of a probe to its result.");
pub const PROBES_LATE_TOTAL: MetricFamily = family(
    "sluice_probes_late_total",
    MetricKind::Counter,
    "Probes that had to wait because as many were under way as may be.",
);
