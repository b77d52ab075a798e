//! The service files, judged by those who will read them: systemd, and the schemas of Kubernetes.

use crate::Args;
use crate::debian;
use crate::shell::{Ctx, capture, run, say};
use crate::tools;
use anyhow::{Context, Result, ensure};

const UNIT: &str = "deploy/systemd/vram.service";
const DROP_IN: &str = "vram.service.d/replicas.conf";
const MANIFEST: &str = "deploy/kubernetes/vram.yaml";
/// Before a line of the manifest that is wanted with replicas only.
const WITH_REPLICAS: &str = "#+ ";
/// Tenths of systemd's points of exposure, of which a service without any protection has 96.
const EXPOSURE: &str = "20";
const VALIDATOR: &str = "kubernetes-validate==1.37.0";

/// `cargo xtask deploy`.
pub fn step(ctx: &Ctx, args: &mut Args) -> Result<String> {
    args.finish()?;
    run(ctx.cargo().args(["build", "--release", "-p", "vram"]))?;
    let home = ctx.target.join("tmp/deploy");
    std::fs::create_dir_all(&home)?;
    // The unit as it is, but for the place of the program: that must be there.
    let unit = std::fs::read_to_string(ctx.root.join(UNIT))?;
    let program = ctx.target.join("release/vram");
    ensure!(unit.contains("/usr/local/bin/vram "), "{UNIT} starts another program");
    let installed = unit.replace("/usr/local/bin/vram ", &format!("{} ", program.display()));
    let copy = home.join("vram.service");
    std::fs::write(&copy, installed)?;
    let analyze = debian::program(ctx, "systemd", "usr/bin/systemd-analyze")?;
    let libraries = match analyze.starts_with(&ctx.target) {
        true => Some(debian::package(ctx, "libsystemd-shared")?.join("usr/lib/x86_64-linux-gnu/systemd")),
        false => None,
    };
    let systemd = || {
        let mut command = ctx.command(&analyze);
        command.envs(libraries.iter().map(|path| ("LD_LIBRARY_PATH", path)));
        command
    };
    // Alone, and with the example of what replicas need.
    let drop_in = home.join(DROP_IN);
    let _ = std::fs::remove_file(&drop_in);
    // Strict about this unit, and about no other that it leads to.
    let verify = || run(systemd().args(["verify", "--recursive-errors=no"]).arg(&copy));
    verify()?;
    std::fs::create_dir_all(home.join("vram.service.d"))?;
    std::fs::copy(ctx.root.join("deploy/systemd").join(DROP_IN), &drop_in)?;
    verify()?;
    std::fs::remove_file(&drop_in)?;
    let threshold = format!("--threshold={EXPOSURE}");
    let said = capture(systemd().args(["security", "--offline=true", "--no-pager", &threshold]).arg(&copy))?;
    let exposure = said.lines().rev().find(|line| line.contains("exposure level")).context("no verdict")?.trim();
    say(exposure);

    // The example configuration is understood: what is missing is the model that it names.
    let config = ctx.root.join("deploy/systemd/vram.toml");
    let tried = ctx.command(&program).args(["serve", "--config"]).arg(&config).output()?;
    let why = String::from_utf8_lossy(&tried.stderr).into_owned();
    ensure!(tried.status.code() == Some(1) && why.contains("/srv/models/llama.safetensors"), "vram.toml: {why}");

    run(tools::pip(ctx, "install")?.arg(VALIDATOR))?;
    let validate = ctx.target.join("tools/venv/bin/kubernetes-validate");
    run(ctx.command(&validate).args(["--strict", MANIFEST]))?;
    let manifest = std::fs::read_to_string(ctx.root.join(MANIFEST))?;
    ensure!(manifest.contains(WITH_REPLICAS), "{MANIFEST} says nothing of replicas");
    let opened = home.join("vram.yaml");
    std::fs::write(&opened, manifest.replace(WITH_REPLICAS, ""))?;
    run(ctx.command(&validate).arg("--strict").arg(&opened))?;
    Ok(exposure.trim_start_matches(['→', ' ']).to_owned())
}
