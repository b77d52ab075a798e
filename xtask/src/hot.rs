//! What the hot path costs, in instructions: the one figure that is the same on every machine of a kind.

use crate::Args;
use crate::debian;
use crate::shell::{Ctx, capture, run, say};
use anyhow::{Context, Result, ensure};
use std::path::Path;

/// Instructions that one `ensure_fresh` may take, the reading of the clock included: a fifth more than measured on
/// 2026-11-24.
const LIMIT: f64 = 280.0;
const COUNTS: [u64; 2] = [10_000, 110_000];

/// `cargo xtask hot`.
pub fn step(ctx: &Ctx, args: &mut Args) -> Result<String> {
    args.finish()?;
    // Together with the program, so that they share every dependency.
    run(ctx.cargo().args(["build", "--release", "-p", "vram", "-p", "hot-path"]))?;
    let program = ctx.target.join("release/hot-path");
    let home = ctx.target.join("tmp/hot");
    let _ = std::fs::remove_dir_all(&home);
    std::fs::create_dir_all(&home)?;
    let native = capture(ctx.command(&program).arg("10000000").arg(home.join("native")))?;
    let few = count(ctx, &program, COUNTS[0], &home)?;
    let many = count(ctx, &program, COUNTS[1], &home)?;
    let each = (many - few) as f64 / (COUNTS[1] - COUNTS[0]) as f64;
    let line = format!("ensure_fresh takes {each:.1} instructions (limit {LIMIT}), {} on this machine", native.trim());
    say(&line);
    ensure!(each <= LIMIT, "ensure_fresh has become dearer: {line}");
    Ok(line)
}

/// Instructions of a whole run, as callgrind counts them.
fn count(ctx: &Ctx, program: &Path, rounds: u64, home: &Path) -> Result<u64> {
    let valgrind = debian::package(ctx, "valgrind")?;
    let output = home.join(format!("callgrind-{rounds}"));
    let mut command = ctx.command(valgrind.join("usr/bin/valgrind"));
    command.env("VALGRIND_LIB", valgrind.join("usr/libexec/valgrind"));
    command.args(["--quiet", "--tool=callgrind"]).arg(format!("--callgrind-out-file={}", output.display()));
    command.arg(program).arg(rounds.to_string()).arg(home.join(format!("log-{rounds}")));
    run(&mut command)?;
    let text = std::fs::read_to_string(&output)?;
    let summary = text.lines().find_map(|line| line.strip_prefix("summary:").or(line.strip_prefix("totals:")));
    summary.and_then(|total| total.trim().parse().ok()).context("callgrind says no total")
}
