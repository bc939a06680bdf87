#[allow(dead_code, unused_imports)]
mod model;
#[allow(dead_code, unused_imports)]
mod source;

fn main() {}
