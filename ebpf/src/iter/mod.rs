//! Walks over the steered sockets, when the agent asks for one.

mod census;
mod drain;
mod tally;
mod walk;
