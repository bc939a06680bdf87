//! The command line as a whole.

use super::*;

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn a_flag_beats_the_environment_and_two_flags_are_a_mistake() {
    let settled = |flags: &'static [&'static str]| {
        let mut connection = ConnectionOptions {
            socket: Some("/s".into()),
            server: Some("http://h:1".into()),
            token_file: None,
            tls: TlsOptions::default(),
            timeout: None,
        };
        connection.settle(|flag| flags.contains(&flag)).map(|()| connection.server.is_some())
    };
    assert!(!settled(&["socket"]).unwrap());
    assert!(settled(&["server"]).unwrap() && settled(&[]).unwrap());
    assert!(matches!(settled(&["socket", "server"]), Err(Failure::Usage(_))));
    let words = |line: &str| line.split_whitespace().map(OsString::from).collect::<Vec<_>>();
    assert_eq!(parse(words("sluice --socket /s get --server http://h:1")).err().unwrap().exit_code(), 2);
}

#[test]
fn every_verb_has_a_timeout() {
    for verb in Cli::command().get_subcommands() {
        let line = match verb.get_name() {
            "describe" | "delete" => format!("{} shop", verb.get_name()),
            "apply" | "diff" => format!("{} -f x", verb.get_name()),
            "weight" => "weight shop/n1 5".to_owned(),
            "zero" | "drain" | "restore" | "ready" => format!("{} shop/n1", verb.get_name()),
            "explain" => "explain 10.96.0.10:80".to_owned(),
            "completions" => "completions bash".to_owned(),
            "wait" => "wait shop/n1 --for ready".to_owned(),
            name => name.to_owned(),
        };
        for line in [format!("sluice {line} --timeout 2s"), format!("sluice --timeout 2s {line}")] {
            let parsed = Cli::try_parse_from(line.split_whitespace());
            let said = parsed.map(|cli| cli.connection.timeout);
            assert_eq!(said.map_err(|error| error.to_string()).unwrap().as_deref(), Some("2s"), "{line}");
        }
    }
    assert!(Cli::try_parse_from(["sluice", "get", "--timeout", "0s"]).is_err());
}

#[test]
fn every_verb_has_an_example() {
    for verb in Cli::command().get_subcommands().filter(|verb| !verb.is_hide_set()) {
        let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.contains("Example"), "{}", verb.get_name());
        assert!(help.contains(&format!("sluice {}", verb.get_name())), "{}", verb.get_name());
    }
}

#[test]
fn wrong_numbers_are_told_in_words() {
    for line in
        ["sluice weight shop/n1 many", "sluice monitor --pid x", "sluice events --after=-1", "sluice agent --probers x"]
    {
        let error = Cli::try_parse_from(line.split_whitespace()).unwrap_err().to_string();
        assert!(!error.contains("digit") && error.contains("write a whole number"), "{line}: {error}");
    }
}

#[test]
fn the_forms_of_the_contract_are_understood() {
    for line in [
        "sluice apply -f shop.yaml",
        "sluice apply -f -",
        "sluice get",
        "sluice get services",
        "sluice get nodes node-1 -o json",
        "sluice get operations -o wide",
        "sluice describe shop",
        "sluice describe node/node-1",
        "sluice delete shop",
        "sluice diff -f shop.yaml",
        "sluice weight shop/n1 5",
        "sluice zero node/node-1 --reason upgrade --for 15m --force",
        "sluice zero shop/n1",
        "sluice drain node/node-1 --deadline 60s --idle-close 2s --on-deadline keep --wait drained --timeout 5m",
        "sluice drain shop/n1 --idle-close never --on-deadline close --wait zeroed",
        "sluice restore node/node-1",
        "sluice wait node/node-1 --for drained --timeout 5m",
        "sluice weight shop --group canary 10 --force",
        "sluice get nodes -w",
        "sluice get service/shop",
        "sluice zero service/shop/n1",
        "sluice apply -f shop.yaml --prune --force",
        "sluice diff -f shop.yaml --prune",
        "sluice man drain",
        "sluice ready shop/n1",
        "sluice ready shop/n1 --lease 30s --uptime 90s --reason warm",
        "sluice ready shop/n1 --not --reason reindexing",
        "sluice connections --service shop --backend n1",
        "sluice explain 10.96.0.10:80",
        "sluice explain 10.96.0.10:80 --from pid:1",
        "sluice accept-shrink",
        "sluice history shop/n1 --limit 5 -o json",
        "sluice undo 1795248000000000 --force --dry-run",
        "sluice top --once",
        "sluice events --follow",
        "sluice monitor",
        "sluice monitor --service shop --frontend 10.96.0.10:80 --pid 4711 --cgroup /web --all --count 3 -o json",
        "sluice check",
        "sluice uninstall --bpffs /b --state-dir /s --keep-state",
        "sluice completions bash",
        "sluice version",
        "sluice --server http://h:1 --token-file /t get",
        "sluice get --socket /s",
        "sluice agent --socket /s --listen off --token-file /t --state-dir /d --bpffs /b --cgroup /c --apply a --apply b \
         --log-format json --log-level debug --config c.toml",
    ] {
        let parsed = Cli::try_parse_from(line.split_whitespace());
        assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
    }
    for line in [
        "sluice",
        "sluice zero",
        "sluice zero shop",
        "sluice zero service/shop",
        "sluice get shop",
        "sluice weight shop/n1",
        "sluice weight shop/n1 many",
        "sluice wait shop/n1",
    ] {
        let error = Cli::try_parse_from(line.split_whitespace()).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}
