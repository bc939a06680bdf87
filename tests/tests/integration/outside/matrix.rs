//! Cells of the loss matrix with real clients beside those that every kernel plays.

use anyhow::Result;

use crate::matrix::play;

#[test]
fn usr_node_agent() -> Result<()> {
    play("agent")
}

#[test]
fn usr_curl_with_nginx() -> Result<()> {
    play("curl-nginx")
}
