//! Who may call what, over real sockets: every method with every credential, certificates and their reload, what is
//! refused at the start, limits, the audit, and the commands.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod audit;
mod commands;
mod hang_up;
mod lasting;
mod limits;
mod pki;
mod refused;
mod reload;
mod setup;
mod table;
