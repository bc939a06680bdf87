#[allow(dead_code)]
mod plan;

fn main() {}
