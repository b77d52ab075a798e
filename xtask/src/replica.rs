//! The `replica` step: what leaves the node, tried on an S3 server and on a witness that others wrote.

use crate::Args;
use crate::shell::{Ctx, run, say};
use crate::steps::Count;
use crate::tools;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

const MOTO: &str = include_str!("../moto.txt");
const WITNESS: &str = include_str!("../witness.txt");

/// `cargo xtask replica`.
pub fn step(ctx: &Ctx, args: &mut Args) -> Result<String> {
    args.finish()?;
    let moto = moto(ctx)?;
    let witness = witness(ctx)?;
    let mut count = Count::default();
    let mut test = ctx.cargo();
    test.args(["test", "--workspace", "--test", "s3", "--test", "witness", "--", "--nocapture"]);
    test.args(["--skip", "distributed"]);
    with_credentials(&mut test).env("VRAM_TEST_MOTO", &moto).env("VRAM_TEST_WITNESS", &witness);
    count.run(test.env("VRAM_REQUIRE_STORES", "1"))?;
    if count.passed == 0 {
        bail!("no test was executed");
    }
    Ok(count.to_string())
}

/// The store's client takes them from the environment. Those that the user may have there stay out of it.
pub fn with_credentials(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("AWS_") {
            command.env_remove(name);
        }
    }
    command.env("AWS_ACCESS_KEY_ID", "VRAMTEST").env("AWS_SECRET_ACCESS_KEY", "vram-test-secret")
}

/// The folder of a virtual environment with an S3 server, and with boto3 to prepare buckets.
pub fn moto(ctx: &Ctx) -> Result<PathBuf> {
    environment(ctx, "moto", MOTO, Path::new("python3"))
}

fn witness(ctx: &Ctx) -> Result<PathBuf> {
    let python = tools::modern_base(ctx).context(
        "the witness needs Python 3.12 or newer, and none is on the path or below ~/.pyenv/versions: install one \
         (Debian 13: packages python3 and python3-venv; elsewhere `pyenv install 3.13`) and run this again",
    )?;
    Ok(environment(ctx, "witness", WITNESS, &python)?.join("bin/aics-witness"))
}

/// A virtual environment with exactly these packages, made anew when the list changes.
fn environment(ctx: &Ctx, name: &str, list: &str, python: &Path) -> Result<PathBuf> {
    let home = ctx.target.join("tools").join(name);
    let stamp = home.join("installed.txt");
    if std::fs::read_to_string(&stamp).is_ok_and(|done| done == list) {
        return Ok(home);
    }
    let start = Instant::now();
    run(ctx.command(python).args(["-m", "venv", "--clear"]).arg(&home))
        .context("this step needs Python 3 with venv and pip (Debian: packages python3 and python3-venv)")?;
    let mut pip = ctx.command(home.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps", "-r"]);
    run(pip.arg(format!("xtask/{name}.txt")))?;
    std::fs::write(&stamp, list)?;
    say(&format!("{name} installed in {:.0} s", start.elapsed().as_secs_f64()));
    Ok(home)
}
