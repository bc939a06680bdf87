//! Tests that every kernel answers alike: what the agent makes of requests, documents, files and flags, and what it
//! decides. They run once, on the host if they can, and in a virtual machine only with `--all`: each start of an agent
//! takes seconds there. What shows how a kernel attaches and replaces programs, runs hooks, stores, counts, closes or
//! lists sockets belongs beside this module, in the file of its subject.

mod addresses;
mod agree;
mod alerts;
mod api;
mod bad_input;
mod budget;
mod cli;
mod datagrams;
mod disk;
mod documents;
mod drain_course;
mod drain_ends;
mod drain_places;
mod drains;
mod ejections;
mod exact;
mod files;
mod flows;
mod gauge;
mod groups;
mod habits;
mod harness;
mod hash;
mod history;
mod matrix;
mod monitor;
mod owners;
mod patterns;
mod probes;
mod ready;
mod restart;
mod roles;
mod sockets;
mod startup;
mod strangers;
mod tracking;
mod uninstall;
mod warmup;
mod zero_load;
mod zeros;
