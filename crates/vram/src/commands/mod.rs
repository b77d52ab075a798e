//! One module for each command.

mod attest;
pub(crate) mod audit;
mod bench;
mod control;
mod demo;
mod doctor;
mod seal;
mod table;

use crate::cli::{Cli, Command};
use crate::exit::Failure;
use crate::output::Out;

/// Does what was asked.
pub(crate) fn run(cli: &Cli, out: &Out) -> Result<(), Failure> {
    match &cli.command {
        Command::Demo(demo) => demo::run(demo, &cli.global, out),
        Command::Seal(seal) => seal::run(seal, &cli.global, out),
        Command::Serve(serve) => crate::serve::run(serve, &cli.global, out),
        Command::Control(control) => control::run(control, out),
        Command::Attest(attest) => attest::run(attest, out),
        Command::Audit(audit) => audit::run(audit, &cli.global, out),
        Command::Doctor(doctor) => doctor::run(doctor, &cli.global, out),
        Command::Bench(bench) => bench::run(bench, &cli.global, out),
        Command::WriteTest { ordinal } => crate::write_test::here(*ordinal),
    }
}
