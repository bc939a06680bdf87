//! Tests that no kernel answers in its own way: what the agent makes of requests, documents, files and flags. They run
//! once, not in every virtual machine, where each start of an agent takes seconds. What attaches programs, counts, closes,
//! restarts or looks at sockets in its own way is to be shown on every kernel, and belongs beside this module.

mod api;
mod bad_input;
mod budget;
mod cli;
mod disk;
mod drains;
mod files;
mod groups;
mod harness;
mod owners;
mod ready;
mod startup;
mod zeros;
