//! What proxies have in common.

use std::{net::TcpStream, time::Duration};

use anyhow::{Context, Result};
use sluice_tests::Program;

use super::{process::promptly, setup::Service, topology::Host};

/// How long a proxy may take until it listens: what takes longer is no candidate for that many services.
const READY: Duration = Duration::from_secs(60);

/// Waits until it listens for the first and for the last service.
pub fn is_up(host: &Host, services: &[Service], program: &mut Program) -> Result<()> {
    for service in services.first().into_iter().chain(services.last()) {
        let at = service.frontend();
        let mut ended = None;
        let up = promptly("the proxy listens", READY, || {
            ended = program.ended();
            let up = host.namespace.run(|| TcpStream::connect(at)).is_ok();
            (up || ended.is_some()).then_some(up)
        });
        let up = up.map(|up| up && ended.is_none()).with_context(|| format!("{:.500}", program.log()))?;
        anyhow::ensure!(up, "{ended:?}: {:.500}", program.log());
    }
    Ok(())
}
