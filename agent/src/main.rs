//! Sluice: steers connections to weighted backends inside the Linux kernel.
#![allow(dead_code)]

mod handle;
mod kernel;
mod model;
mod observe;
mod plan;
mod run;
mod source;

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let args: Vec<String> = std::env::args().collect();
    if args[1] == "check" {
        for f in kernel::probe::report(std::path::Path::new("/sys/fs/bpf/sluice")) {
            println!("{f:?}");
        }
        return Ok(());
    }
    if args[1] == "uninstall" {
        println!("{:?}", kernel::uninstall(std::path::Path::new(&args[2]))?);
        return Ok(());
    }
    let config = run::Config {
        kernel: kernel::Config {
            bpffs: args[1].clone().into(),
            cgroup: args[2].clone().into(),
            mark: 0x51ce,
            sizes: kernel::Sizes { services: 16384, backends: 65536, nodes: 16384, frontends: 65536, slots: 4 << 20 },
        },
        state_dir: args[3].clone().into(),
        apply: vec![],
        census_interval: std::time::Duration::from_secs(5),
    };
    let running = run::start(&config)?;
    let rt = tokio::runtime::Runtime::new()?;
    let bytes = std::fs::read(&args[4])?;
    for d in model::parse::documents(&bytes, model::parse::Format::Yaml)? {
        if let model::document::Document::Service(s) = d.document {
            let t = std::time::Instant::now();
            let r = rt.block_on(running.handle.change(
                model::Change::PutService { document: s, origin: model::Origin::Api, if_match: None },
                handle::Options { dry_run: false, received: t },
            ));
            println!("{:?}", r.map(|d| (d.outcome, d.programmed_in)));
        }
    }
    loop {
        std::thread::sleep(std::time::Duration::from_secs(2));
        let p = running.handle.published();
        for s in p.state.services() {
            let ids: Vec<_> = s.backends.iter().map(|b| b.id).collect();
            println!(
                "{} {:?}",
                s.name,
                running
                    .handle
                    .meters()
                    .counters(&ids)?
                    .iter()
                    .map(|c| (c.picked, c.opened, c.established, c.closed, c.failed, c.rtt_sum, c.connect_sum))
                    .collect::<Vec<_>>()
            );
        }
        println!("{:?}", running.handle.meters().verdicts()?);
        println!("{:?}", rt.block_on(running.handle.census()).map(|c| (c.hz, c.rows.len(), c.rows.first().copied())));
    }
}
