//! Programs from Debian's packages, unpacked below the target directory: no root needed, nothing of the system's touched.

use crate::shell::{Ctx, capture, run, say};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// The folder in which a package lies unpacked. It is fetched where it is not there yet.
pub fn package(ctx: &Ctx, name: &str) -> Result<PathBuf> {
    let dir = ctx.target.join("tools/debian").join(name);
    let done = dir.join(".unpacked");
    if done.is_file() {
        return Ok(dir);
    }
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir)?;
    let what = || format!("the Debian package {name} could not be fetched (this step needs apt-get and dpkg-deb)");
    if capture(ctx.command("apt-get").args(["download", name]).current_dir(&dir)).is_err() {
        let ours = own_lists(ctx).with_context(what)?;
        let options = ours.iter().flat_map(|option| ["-o", option.as_str()]);
        run(ctx.command("apt-get").args(["-qq"]).args(options).args(["download", name]).current_dir(&dir))
            .with_context(what)?;
    }
    let archive = std::fs::read_dir(&dir)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let Some(archive) = archive else { bail!("apt-get left no package in {}", dir.display()) };
    run(ctx.command("dpkg-deb").arg("-x").args([&archive, &dir])).with_context(what)?;
    std::fs::remove_file(&archive)?;
    std::fs::write(&done, "")?;
    say(&format!("Debian package {name} is in {}", dir.display()));
    Ok(dir)
}

/// The system's lists of packages may be missing: fetches our own, and returns the options that make apt-get use them.
fn own_lists(ctx: &Ctx) -> Result<[String; 3]> {
    let state = ctx.target.join("tools/debian/.apt");
    for part in ["lists/partial", "cache/archives/partial"] {
        std::fs::create_dir_all(state.join(part))?;
    }
    let ours = [
        format!("Dir::State::lists={}", state.join("lists").display()),
        format!("Dir::Cache={}", state.join("cache").display()),
        String::from("Debug::NoLocking=1"),
    ];
    let options = ours.iter().flat_map(|option| ["-o", option.as_str()]);
    run(ctx.command("apt-get").args(["-qq"]).args(options).arg("update"))?;
    Ok(ours)
}

/// One folder in which several packages lie unpacked together, as on a system that has them all.
pub fn together(ctx: &Ctx, name: &str, packages: &[&str]) -> Result<PathBuf> {
    let dir = ctx.target.join("tools/debian-together").join(name);
    let (done, wanted) = (dir.join(".unpacked"), packages.join("\n"));
    if std::fs::read_to_string(&done).is_ok_and(|found| found == wanted) {
        return Ok(dir);
    }
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir)?;
    for name in packages {
        let mut from = package(ctx, name)?.into_os_string();
        from.push("/.");
        run(ctx.command("cp").args(["-a", "--no-preserve=ownership"]).arg(from).arg(&dir))?;
    }
    std::fs::write(&done, wanted)?;
    Ok(dir)
}

/// One folder with a package, with what it needs and this system lacks, and with `also`, all unpacked together.
pub fn with_dependencies(ctx: &Ctx, name: &str, also: &[&str]) -> Result<PathBuf> {
    let plan = ["install", "--simulate", "--no-install-recommends", name];
    let said = match capture(ctx.command("apt-get").args(plan)) {
        Ok(said) => said,
        Err(_) => {
            let ours = own_lists(ctx)?;
            let options = ours.iter().flat_map(|option| ["-o", option.as_str()]);
            capture(ctx.command("apt-get").args(options).args(plan))
                .with_context(|| format!("apt-get does not say what the Debian package {name} needs"))?
        }
    };
    let mut packages: Vec<&str> =
        said.lines().filter_map(|line| line.strip_prefix("Inst ")?.split_whitespace().next()).collect();
    if !packages.contains(&name) {
        packages.push(name); // installed: ours is unpacked all the same
    }
    packages.extend(also.iter().filter(|other| !said.contains(&format!("Inst {other} "))));
    together(ctx, name, &packages)
}

/// A program of a package, or the system's own of that name.
pub fn program(ctx: &Ctx, package_name: &str, path: &str) -> Result<PathBuf> {
    let name = Path::new(path).file_name().context("a path without a name")?;
    let own = std::env::var_os("PATH")
        .and_then(|dirs| std::env::split_paths(&dirs).map(|dir| dir.join(name)).find(|file| file.is_file()));
    match own {
        Some(found) => Ok(found),
        None => Ok(package(ctx, package_name)?.join(path)),
    }
}
