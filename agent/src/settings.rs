//! The daemon's settings. Each is a flag, an environment variable `SLUICE_...` and a key of the TOML file that
//! `--config` names; a flag beats the environment, which beats the file, which beats the default.

mod listen;

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use jiff::SignedDuration;
use serde::{Deserialize, Deserializer, de::Error as _};
use sluice_common::tables::MAX_SLOTS;

use crate::{
    host::{cgroups, users},
    model::{Limits, words::whole_number},
};

pub use listen::Listen;

pub const SOCKET: &str = "/run/sluice/sluice.sock";
pub const STATE_DIR: &str = "/var/lib/sluice";
pub const BPFFS: &str = "/sys/fs/bpf/sluice";
const LISTEN: &str = "127.0.0.1:9180";
const MARK: u32 = 0x51ce;
/// Percent.
const SHRINK_LIMIT: u32 = 30;
const CENSUS_INTERVAL: Duration = Duration::from_secs(30);

/// What the daemon runs with; complete and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub socket: PathBuf,
    pub listen: Listen,
    /// Group whose members may use the socket.
    pub socket_group: Option<u32>,
    pub token_file: Option<PathBuf>,
    pub read_token_file: Option<PathBuf>,
    pub tls: Option<TlsFiles>,
    /// Client certificates that may change things, by subject or name.
    pub tls_operators: Vec<String>,
    /// Names by which the TCP address may be asked, besides itself.
    pub allow_host: Vec<String>,
    pub state_dir: PathBuf,
    /// Directory on a bpffs that holds the pins.
    pub bpffs: PathBuf,
    /// Directory of the cgroup (v2) whose processes are steered.
    pub cgroup: PathBuf,
    /// Files and directories of documents, watched.
    pub apply: Vec<PathBuf>,
    pub log_format: LogFormat,
    pub log_level: String,
    /// Sockets with this SO_MARK pass untouched; 0 is none.
    pub mark: u32,
    /// Entries of the kernel's tables.
    pub limits: Limits,
    /// Size of SLOTS.
    pub max_slots: u32,
    /// Time between two censuses that check the connection gauges.
    pub census_interval: Duration,
    pub probing: Probing,
    pub brake: Brake,
}

/// What the agent does not do unasked, and what of it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Brake {
    /// A look at files that removes more than this share of the services or backends waits, percent, and an apply that
    /// does is refused; 100: no limit.
    pub shrink_limit: u8,
    /// The first one that would wait does not.
    pub accept_shrink: bool,
    /// Begin with a store that does not know what the kernel's tables hold.
    pub accept_empty: bool,
    /// Begin with an older copy of the store than the kernel's tables.
    pub accept_older: bool,
    /// Make services of what the kernel steers when the store has none.
    pub adopt: bool,
    /// Begin without the records of the store that are damaged.
    pub accept_damage: bool,
    /// Take programs that steer another cgroup to this one.
    pub accept_move: bool,
}

/// How this agent finds out which backends are ready.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probing {
    /// Directory of the commands of `kind: exec`.
    pub hooks: Option<PathBuf>,
    /// The node that this agent runs on.
    pub node: Option<String>,
    /// The agents of the fleet, by node; empty when they share nothing.
    pub peers: Vec<String>,
    /// Agents that probe each backend of `from: peers`.
    pub probers: usize,
    /// Most probes at a time.
    pub in_flight: usize,
}

impl Default for Brake {
    fn default() -> Self {
        let shrink_limit = SHRINK_LIMIT as u8;
        Self {
            shrink_limit,
            accept_shrink: false,
            accept_empty: false,
            accept_older: false,
            adopt: false,
            accept_damage: false,
            accept_move: false,
        }
    }
}

/// Files of the certificate that the TCP address shows, and of the authorities whose certificates it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub client_ca: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For collectors.
    Json,
}

/// One source of settings: the command line with its environment, or the file.
#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Layer {
    /// A flag of all verbs.
    #[arg(skip)]
    pub socket: Option<PathBuf>,
    /// A flag of all verbs.
    #[arg(skip)]
    pub token_file: Option<PathBuf>,
    /// TCP address for reads, and with --token-file for writes too; `off` for none [default: 127.0.0.1:9180]
    #[arg(long, env = "SLUICE_LISTEN", hide_env_values = true, value_name = "ADDRESS")]
    pub listen: Option<Listen>,
    /// Group of the Unix socket, by name or number: its members may do everything too [default: the agent's own]
    #[arg(long, env = "SLUICE_SOCKET_GROUP", hide_env_values = true, value_name = "GROUP")]
    pub socket_group: Option<String>,
    /// File with tokens that reads over TCP need; without it, and without --tls-client-ca, they need none
    #[arg(long, env = "SLUICE_READ_TOKEN_FILE", hide_env_values = true, value_name = "PATH", help_heading = "TCP")]
    pub read_token_file: Option<PathBuf>,
    /// Certificate chain of the TCP address, in PEM form: with it and --tls-key it speaks TLS alone
    #[arg(long, env = "SLUICE_TLS_CERT", hide_env_values = true, value_name = "PATH", help_heading = "TCP")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate
    #[arg(long, env = "SLUICE_TLS_KEY", hide_env_values = true, value_name = "PATH", help_heading = "TCP")]
    pub tls_key: Option<PathBuf>,
    /// Authorities whose client certificates may read; without such a certificate, or a token, nobody may
    #[arg(long, env = "SLUICE_TLS_CLIENT_CA", hide_env_values = true, value_name = "PATH", help_heading = "TCP")]
    pub tls_client_ca: Option<PathBuf>,
    /// A client certificate that may change things too, by its subject (CN=ops,O=Example) or one of its names; may be
    /// repeated
    #[arg(
        long,
        env = "SLUICE_TLS_OPERATORS",
        hide_env_values = true,
        value_name = "SUBJECT",
        value_delimiter = ';',
        help_heading = "TCP"
    )]
    pub tls_operators: Option<Vec<String>>,
    /// Names in the header Host of requests over TCP that are answered, besides the address itself and localhost
    #[arg(long, env = "SLUICE_ALLOW_HOST", hide_env_values = true, value_name = "NAME,...", value_delimiter = ',')]
    pub allow_host: Option<Vec<String>>,
    /// Directory of the store [default: /var/lib/sluice]
    #[arg(long, env = "SLUICE_STATE_DIR", hide_env_values = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Directory on a bpffs for the pinned programs and tables [default: /sys/fs/bpf/sluice]
    #[arg(long, env = "SLUICE_BPFFS", hide_env_values = true, value_name = "DIR")]
    pub bpffs: Option<PathBuf>,
    /// Cgroup (v2) whose processes are steered [default: the root, found in /proc/self/mountinfo]
    #[arg(long, env = "SLUICE_CGROUP", hide_env_values = true, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// File or directory of documents, applied at start and whenever it changes; may be repeated
    #[arg(long, env = "SLUICE_APPLY", hide_env_values = true, value_name = "PATH", value_delimiter = ',')]
    pub apply: Option<Vec<PathBuf>>,
    /// [default: text]
    #[arg(long, env = "SLUICE_LOG_FORMAT", hide_env_values = true, value_enum)]
    pub log_format: Option<LogFormat>,
    /// error, warn, info, debug, trace, or a list such as info,sluice=debug [default: info]
    #[arg(long, env = "SLUICE_LOG_LEVEL", hide_env_values = true, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Sockets with this SO_MARK pass untouched, for health checks and debugging; 0 for none [default: 0x51ce]
    #[arg(long, env = "SLUICE_MARK", hide_env_values = true, value_parser = number)]
    pub mark: Option<u32>,
    /// Time between two checks of the connection gauges against the sockets themselves [default: 30s]
    #[arg(long, env = "SLUICE_CENSUS_INTERVAL", hide_env_values = true, value_name = "TIME", value_parser = time)]
    #[serde(deserialize_with = "some_time")]
    pub census_interval: Option<Duration>,
    /// Share of the services or backends, percent: watched files, or documents that are applied together, may remove more
    /// only when that is accepted; 100 for no limit [default: 30]
    #[arg(long, env = "SLUICE_SHRINK_LIMIT", hide_env_values = true, value_name = "PERCENT", help_heading = "Brake",
        value_parser = whole_number::<u32>)]
    pub shrink_limit: Option<u32>,
    /// Accept what files first ask for beyond --shrink-limit
    // Asked for once: an environment or a file would ask at every start.
    #[arg(long, help_heading = "Brake")]
    #[serde(skip)]
    pub accept_shrink: bool,
    /// Begin with a store that does not know what the kernel steers: what it and the files do not bring is removed
    #[arg(long, help_heading = "Brake")]
    #[serde(skip)]
    pub accept_empty: bool,
    /// Begin with an older copy of the store than what the kernel steers: what it does not have is removed
    #[arg(long, help_heading = "Brake")]
    #[serde(skip)]
    pub accept_older: bool,
    /// Make services of what the kernel steers, when the store has none; their names are `adopted-N`
    #[arg(long, help_heading = "Brake")]
    #[serde(skip)]
    pub adopt: bool,
    /// Begin without the records of the store that are damaged, and keep the others
    #[arg(long, help_heading = "Brake")]
    #[serde(skip)]
    pub accept_damage: bool,
    /// Take the pinned programs along when they steer another cgroup: it is steered no longer
    #[arg(long, help_heading = "Brake")]
    #[serde(skip)]
    pub accept_move: bool,
    /// Directory of the commands that `readiness: {kind: exec}` may run; without it there are none
    #[arg(long, env = "SLUICE_HOOKS", hide_env_values = true, value_name = "DIR", help_heading = "Readiness")]
    pub hooks: Option<PathBuf>,
    /// Node that this agent runs on, as backends name it
    #[arg(long, env = "SLUICE_NODE", hide_env_values = true, value_name = "NAME", help_heading = "Readiness")]
    pub node: Option<String>,
    /// Nodes of all agents that share the probes of `from: peers`, this one's among them; the same list everywhere
    #[arg(
        long,
        env = "SLUICE_PEERS",
        hide_env_values = true,
        value_name = "NAME,...",
        value_delimiter = ',',
        help_heading = "Readiness"
    )]
    pub peers: Option<Vec<String>>,
    /// How many of the peers probe each backend [default: 3]
    #[arg(long, env = "SLUICE_PROBERS", hide_env_values = true, value_name = "N", help_heading = "Readiness", value_parser = number)]
    pub probers: Option<u32>,
    /// Most probes at a time; others wait their turn [default: 1024]
    #[arg(long, env = "SLUICE_PROBES_IN_FLIGHT", hide_env_values = true, value_name = "N", help_heading = "Readiness", value_parser = number)]
    pub probes_in_flight: Option<u32>,
    /// Size of a kernel table, fixed while it is pinned [default: 16384]
    #[arg(long, env = "SLUICE_MAX_SERVICES", hide_env_values = true, value_name = "N", help_heading = "Table sizes", value_parser = number)]
    pub max_services: Option<u32>,
    /// [default: 65536]
    #[arg(long, env = "SLUICE_MAX_BACKENDS", hide_env_values = true, value_name = "N", help_heading = "Table sizes", value_parser = number)]
    pub max_backends: Option<u32>,
    /// [default: 16384]
    #[arg(long, env = "SLUICE_MAX_NODES", hide_env_values = true, value_name = "N", help_heading = "Table sizes", value_parser = number)]
    pub max_nodes: Option<u32>,
    /// [default: 65536]
    #[arg(long, env = "SLUICE_MAX_FRONTENDS", hide_env_values = true, value_name = "N", help_heading = "Table sizes", value_parser = number)]
    pub max_frontends: Option<u32>,
    /// [default: 4194304]
    #[arg(long, env = "SLUICE_MAX_SLOTS", hide_env_values = true, value_name = "N", help_heading = "Table sizes", value_parser = number)]
    pub max_slots: Option<u32>,
}

impl Settings {
    /// `flags` with what `config` and the defaults add.
    ///
    /// # Errors
    /// When the file cannot be read or has an unknown key, or a setting makes no sense.
    pub fn load(flags: Layer, config: Option<&PathBuf>) -> Result<Self> {
        let file = match config {
            Some(path) => {
                let text =
                    fs::read_to_string(path).with_context(|| format!("reading the settings in {}", path.display()))?;
                toml::from_str(&text).with_context(|| format!("in the settings file {}", path.display()))?
            }
            None => Layer::default(),
        };
        flags.or(file).complete()
    }
}

impl Layer {
    /// What is not set here is taken from `other`.
    fn or(self, other: Self) -> Self {
        Self {
            socket: self.socket.or(other.socket),
            token_file: self.token_file.or(other.token_file),
            listen: self.listen.or(other.listen),
            socket_group: self.socket_group.or(other.socket_group),
            read_token_file: self.read_token_file.or(other.read_token_file),
            tls_cert: self.tls_cert.or(other.tls_cert),
            tls_key: self.tls_key.or(other.tls_key),
            tls_client_ca: self.tls_client_ca.or(other.tls_client_ca),
            tls_operators: self.tls_operators.or(other.tls_operators),
            allow_host: self.allow_host.or(other.allow_host),
            state_dir: self.state_dir.or(other.state_dir),
            bpffs: self.bpffs.or(other.bpffs),
            cgroup: self.cgroup.or(other.cgroup),
            apply: self.apply.or(other.apply),
            log_format: self.log_format.or(other.log_format),
            log_level: self.log_level.or(other.log_level),
            mark: self.mark.or(other.mark),
            census_interval: self.census_interval.or(other.census_interval),
            hooks: self.hooks.or(other.hooks),
            node: self.node.or(other.node),
            peers: self.peers.or(other.peers),
            probers: self.probers.or(other.probers),
            probes_in_flight: self.probes_in_flight.or(other.probes_in_flight),
            max_services: self.max_services.or(other.max_services),
            max_backends: self.max_backends.or(other.max_backends),
            max_nodes: self.max_nodes.or(other.max_nodes),
            max_frontends: self.max_frontends.or(other.max_frontends),
            max_slots: self.max_slots.or(other.max_slots),
            shrink_limit: self.shrink_limit.or(other.shrink_limit),
            accept_shrink: self.accept_shrink || other.accept_shrink,
            accept_empty: self.accept_empty || other.accept_empty,
            accept_older: self.accept_older || other.accept_older,
            adopt: self.adopt || other.adopt,
            accept_damage: self.accept_damage || other.accept_damage,
            accept_move: self.accept_move || other.accept_move,
        }
    }

    fn complete(self) -> Result<Settings> {
        let limits = Limits {
            services: size("max-services", self.max_services, 16_384, 1..=1 << 20)?,
            backends: size("max-backends", self.max_backends, 65_536, 1..=1 << 24)?,
            // Node 0 stands for backends that name none.
            nodes: size("max-nodes", self.max_nodes, 16_384, 2..=1 << 20)?,
            frontends: size("max-frontends", self.max_frontends, 65_536, 1..=1 << 24)?,
        };
        let peers = self.peers.unwrap_or_default();
        ensure!(peers.is_empty() || self.node.is_some(), "peers needs node: say which of them this agent is");
        let probing = Probing {
            hooks: self.hooks,
            node: self.node,
            peers,
            probers: size("probers", self.probers, 3, 1..=1000)? as usize,
            in_flight: size("probes-in-flight", self.probes_in_flight, 1024, 1..=65_536)? as usize,
        };
        let shrink_limit = size("shrink-limit", self.shrink_limit, SHRINK_LIMIT, 0..=100)?;
        let brake = Brake {
            shrink_limit: u8::try_from(shrink_limit)?,
            accept_shrink: self.accept_shrink,
            accept_empty: self.accept_empty,
            accept_older: self.accept_older,
            adopt: self.adopt,
            accept_damage: self.accept_damage,
            accept_move: self.accept_move,
        };
        let tls_operators = self.tls_operators.unwrap_or_default();
        ensure!(
            tls_operators.is_empty() || self.tls_client_ca.is_some(),
            "tls-operators needs tls-client-ca: say who signs their certificates"
        );
        Ok(Settings {
            probing,
            brake,
            tls: tls(self.tls_cert, self.tls_key, self.tls_client_ca)?,
            tls_operators,
            socket_group: self.socket_group.as_deref().map(users::group).transpose()?,
            read_token_file: self.read_token_file,
            socket: self.socket.unwrap_or_else(|| SOCKET.into()),
            listen: match self.listen {
                Some(listen) => listen,
                None => LISTEN.parse()?,
            },
            token_file: self.token_file,
            allow_host: self.allow_host.unwrap_or_default(),
            state_dir: self.state_dir.unwrap_or_else(|| STATE_DIR.into()),
            bpffs: self.bpffs.unwrap_or_else(|| BPFFS.into()),
            cgroup: match self.cgroup {
                Some(cgroup) => cgroup,
                None => cgroups::root()?,
            },
            apply: self.apply.unwrap_or_default(),
            log_format: self.log_format.unwrap_or_default(),
            log_level: self.log_level.unwrap_or_else(|| "info".into()),
            mark: self.mark.unwrap_or(MARK),
            limits,
            census_interval: self.census_interval.unwrap_or(CENSUS_INTERVAL),
            max_slots: size("max-slots", self.max_slots, 4_194_304, 16..=MAX_SLOTS)?,
        })
    }
}

fn tls(certificate: Option<PathBuf>, key: Option<PathBuf>, client_ca: Option<PathBuf>) -> Result<Option<TlsFiles>> {
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some(TlsFiles { certificate, key, client_ca })),
        (None, None) if client_ca.is_none() => Ok(None),
        _ => bail!("tls-cert and tls-key go together, and tls-client-ca needs both"),
    }
}

/// A number, or a hexadecimal one with `0x` in front.
fn number(text: &str) -> Result<u32, String> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).map_err(|_| "write up to eight hexadecimal digits".to_owned()),
        None => whole_number(text),
    }
}

/// A time span of at least 100 ms, such as `30s`.
fn time(text: &str) -> Result<Duration, String> {
    let span: Option<Duration> = text.parse().ok().and_then(|span: SignedDuration| span.try_into().ok());
    let span = span.filter(|span| *span >= Duration::from_millis(100));
    span.ok_or_else(|| format!("{text:?} is no time span: write one of at least 100ms, such as 30s"))
}

fn some_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    time(&String::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
}

fn size(key: &str, given: Option<u32>, default: u32, range: std::ops::RangeInclusive<u32>) -> Result<u32> {
    let size = given.unwrap_or(default);
    ensure!(range.contains(&size), "{key} is {size}; it can be from {} to {}", range.start(), range.end());
    Ok(size)
}

#[cfg(test)]
mod tests;
