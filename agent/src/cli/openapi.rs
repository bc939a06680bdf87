//! `sluice openapi`: the description of the API, without an agent.

use clap::Args;

use super::{failure::Failure, output};
use crate::http;

/// Print the OpenAPI document of the API
#[derive(Debug, Args)]
pub struct OpenapiArguments {}

impl OpenapiArguments {
    pub fn run(self) -> Result<(), Failure> {
        output::print(&output::json(&http::document())?)
    }
}
