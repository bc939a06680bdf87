//! Walks over the steered sockets, when the agent asks for one.

mod census;
mod drain;
mod ending;
mod tally;
mod walk;
