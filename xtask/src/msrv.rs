//! The `msrv` step. The real proof, a build with that toolchain, needs the toolchain; this one needs none: every
//! manifest states the same version, and no dependency in the lock files declares a newer one.

use crate::Args;
use crate::shell::{Ctx, capture, say};
use anyhow::{Context, Result, bail};
use serde_json::Value;

type Version = (u32, u32, u32);

pub fn step(ctx: &Ctx, args: &mut Args) -> Result<String> {
    args.finish()?;
    let root = metadata(ctx, "Cargo.toml")?;
    let fuzz = metadata(ctx, "fuzz/Cargo.toml")?;

    let mut stated = clippy_msrv(ctx)?;
    for package in members(&root).chain(members(&fuzz)) {
        let version = package.get("rust_version").and_then(Value::as_str);
        stated.push((name(package), version.context("a package states no rust-version")?.to_owned()));
    }
    let (first, agreed) = stated.first().context("there are no packages")?;
    if let Some((other, version)) = stated.iter().find(|(_, version)| version != agreed) {
        bail!("{first} states rust-version {agreed}, {other} states {version}: they must agree");
    }
    let limit = parse(agreed)?;

    let (mut silent, mut checked, mut highest) = (0, 0, (0, 0, 0));
    for package in [&root, &fuzz].into_iter().flat_map(packages) {
        let Some(declared) = package.get("rust_version").and_then(Value::as_str) else {
            silent += 1;
            continue;
        };
        let version = parse(declared)?;
        if version > limit {
            bail!("{} needs Rust {declared}, the manifests promise {agreed}", name(package));
        }
        highest = highest.max(version);
        checked += 1;
    }
    say(&format!("{} manifests state rust-version {agreed}", stated.len()));
    say(&format!(
        "{checked} packages in the lock files declare at most {}.{}; {silent} declare nothing",
        highest.0, highest.1
    ));
    Ok(format!("Rust {agreed}"))
}

/// `--locked`: what is checked has to be what is committed.
fn metadata(ctx: &Ctx, manifest: &str) -> Result<Value> {
    let mut command = ctx.cargo();
    command.args(["metadata", "--format-version", "1", "--locked", "--manifest-path", manifest]);
    let said = capture(&mut command).with_context(|| {
        format!(
            "if a dependency changed: `cargo update --workspace --manifest-path {manifest}`, and commit the lock file"
        )
    })?;
    Ok(serde_json::from_str(&said)?)
}

fn packages(metadata: &Value) -> impl Iterator<Item = &Value> {
    metadata.get("packages").and_then(Value::as_array).into_iter().flatten()
}

fn members(metadata: &Value) -> impl Iterator<Item = &Value> {
    let ids = metadata.get("workspace_members").and_then(Value::as_array);
    packages(metadata).filter(move |package| ids.zip(package.get("id")).is_some_and(|(ids, id)| ids.contains(id)))
}

fn name(package: &Value) -> String {
    let field = |key| package.get(key).and_then(Value::as_str).unwrap_or("?");
    format!("{} {}", field("name"), field("version"))
}

/// Clippy is told the version a second time, because it does not read the workspace's.
fn clippy_msrv(ctx: &Ctx) -> Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(ctx.root.join("clippy.toml")).context("clippy.toml")?;
    let line = text.lines().find_map(|line| line.strip_prefix("msrv = "));
    Ok(line.map(|value| (String::from("clippy.toml"), value.trim_matches('"').to_owned())).into_iter().collect())
}

fn parse(text: &str) -> Result<Version> {
    let release = text.split('-').next().unwrap_or(text);
    let mut parts = release.split('.').map(str::parse);
    let mut next = || parts.next().unwrap_or(Ok(0)).with_context(|| format!("`{text}` is not a Rust version"));
    Ok((next()?, next()?, next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() -> Result<()> {
        assert!(parse("1.88")? > parse("1.9.5")?);
        assert!(parse("1.88.1")? > parse("1.88")?);
        assert_eq!(parse("1.85.0")?, parse("1.85")?);
        assert!(parse("stable").is_err());
        Ok(())
    }
}
