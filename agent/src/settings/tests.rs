//! Flags, files and defaults.

use super::*;

fn file(text: &str) -> Result<Layer> {
    Ok(toml::from_str(text)?)
}

fn some_cgroup() -> Layer {
    Layer { cgroup: Some("/c".into()), ..Layer::default() }
}

#[test]
fn a_flag_beats_the_file_which_beats_the_default() {
    let flags = Layer { log_level: Some("debug".into()), ..some_cgroup() };
    let file =
        file("log-level = 'warn'\nlisten = 'off'\nmark = 0x10\napply = ['/a', '/b']\nlog-format = 'json'").unwrap();
    let settings = flags.or(file).complete().unwrap();
    assert_eq!((settings.log_level.as_str(), settings.listen, settings.mark), ("debug", Listen::Off, 16));
    assert_eq!(settings.apply, [PathBuf::from("/a"), "/b".into()]);
    assert_eq!(settings.log_format, LogFormat::Json);
    assert_eq!((settings.socket, settings.bpffs), (PathBuf::from(SOCKET), PathBuf::from(BPFFS)));
    assert_eq!(settings.limits, Limits { services: 16_384, backends: 65_536, nodes: 16_384, frontends: 65_536 });
}

#[test]
fn every_flag_is_a_key_of_the_file() {
    let command = <Layer as Args>::augment_args(clap::Command::new("agent"));
    let mut flags: Vec<_> = command.get_arguments().filter_map(|arg| arg.get_long()).collect();
    flags.extend(["socket", "token-file"]);
    for flag in flags {
        // What is accepted is accepted for one start.
        let is_of_one_start = flag.starts_with("accept-") || flag == "adopt";
        let known = [
            format!("{flag} = 'off'"),
            format!("{flag} = 'text'"),
            format!("{flag} = 1"),
            format!("{flag} = ['x']"),
            format!("{flag} = '30s'"),
            format!("{flag} = true"),
        ];
        assert_eq!(known.iter().any(|text| file(text).is_ok()), !is_of_one_start, "{flag}");
    }
}

#[test]
fn mistakes_are_named() {
    for (text, named) in [
        ("sockets = '/x'", "sockets"),
        ("listen = 'here'", "\"here\""),
        ("max-slots = -1", "max-slots"),
        ("log-format = 'xml'", "xml"),
    ] {
        let error = format!("{:#}", file(text).unwrap_err());
        assert!(error.contains(named), "{text}: {error}");
    }
    let too_small = Layer { max_nodes: Some(1), ..some_cgroup() };
    assert!(too_small.complete().unwrap_err().to_string().contains("max-nodes"));
    for half in [
        Layer { tls_cert: Some("/c".into()), ..some_cgroup() },
        Layer { tls_client_ca: Some("/c".into()), ..some_cgroup() },
        Layer { tls_operators: Some(vec!["ops".into()]), ..some_cgroup() },
    ] {
        assert!(half.complete().unwrap_err().to_string().contains("tls-"));
    }
    let nobody = Layer { peers: Some(vec!["a".into()]), ..some_cgroup() };
    assert!(nobody.complete().unwrap_err().to_string().contains("node"));
}

#[test]
fn numbers_may_be_hexadecimal() {
    assert_eq!((number("0x51ce"), number("7")), (Ok(MARK), Ok(7)));
    assert!(number("x").is_err());
}
