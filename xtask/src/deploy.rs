//! The service files, judged by those who will read them: systemd, and the schemas of Kubernetes.

use crate::Args;
use crate::debian;
use crate::shell::{Ctx, capture, run, say};
use crate::tools;
use anyhow::{Context, Result, ensure};

const UNIT: &str = "deploy/systemd/vram.service";
/// Beside it, of which each is an example.
const DROP_INS: [&str; 2] = ["vram.service.d/replicas.conf", "vram.service.d/gpu.conf"];
const MANIFEST: &str = "deploy/kubernetes/vram.yaml";
/// Before a line of the manifest that is wanted with replicas only, and with GPUs only.
const OPTIONAL: [&str; 2] = ["#+ ", "#g "];
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
    let drop_ins = home.join("vram.service.d");
    let _ = std::fs::remove_dir_all(&drop_ins);
    // Strict about this unit, and about no other that it leads to.
    let verify = || run(systemd().args(["verify", "--recursive-errors=no"]).arg(&copy));
    // Alone, and with each of the examples.
    verify()?;
    for drop_in in DROP_INS {
        std::fs::create_dir_all(&drop_ins)?;
        std::fs::copy(ctx.root.join("deploy/systemd").join(drop_in), home.join(drop_in))?;
        verify()?;
        std::fs::remove_dir_all(&drop_ins)?;
    }
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
    for optional in OPTIONAL {
        ensure!(manifest.contains(optional), "{MANIFEST} has no line behind {optional}");
        let opened = home.join("vram.yaml");
        std::fs::write(&opened, manifest.replace(optional, ""))?;
        run(ctx.command(&validate).arg("--strict").arg(&opened))?;
    }
    Ok(exposure.trim_start_matches(['→', ' ']).to_owned())
}
