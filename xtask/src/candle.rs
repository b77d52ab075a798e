//! The `candle` step: a model of somebody else's engine runs on weights that a daemon holds.

use crate::daemon::Daemon;
use crate::shell::{Ctx, run_and_read};
use crate::{Args, model};
use anyhow::{Context, Result, bail};

const SENTENCE: &str = "Weights stay where they are, and somebody checks them.";

pub fn step(ctx: &Ctx, args: &mut Args) -> Result<String> {
    args.finish()?;
    let file = model::fetch(ctx)?;
    let words = file.with_file_name("vocab.txt");
    let mut daemon = Daemon::start(ctx, "candle", &[], &["--period", "5s"])?;
    // With its tensors, which the daemon's own models do not have.
    let path = file.to_str().context("the model's path is no text")?;
    daemon.ask(&["load", "--format", "safetensors", path])?;
    let mut example = ctx.cargo();
    example.args(["run", "--release", "--locked", "--manifest-path", "examples/attach-candle/Cargo.toml"]);
    example.arg("--target-dir").arg(ctx.target.join("candle")).arg("--").arg(&file).arg(&words).arg(SENTENCE);
    let lines = run_and_read(example.env("VRAM_ATTACH_SOCKET", daemon.home.join("s-attach")))?;
    daemon.stop()?;
    let Some(ok) = lines.iter().find_map(|line| line.strip_prefix("ok ")) else {
        bail!("the example does not say that the embeddings are the same");
    };
    Ok(ok.trim().to_owned())
}
