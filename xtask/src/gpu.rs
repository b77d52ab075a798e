//! `cargo xtask gpu-check`: packs a folder that checks and measures the CUDA device on a machine without Rust.

use std::path::Path;

use crate::Args;
use crate::shell::{Ctx, capture, run, say};
use anyhow::{Context, Result, bail};

pub const HELP: &str = "packs target/gpu-check for a machine with an NVIDIA GPU; --run runs it here";

/// The help of this verb.
pub const USAGE: &str = "\
cargo xtask gpu-check [--run]

Builds vram-gpu-check and packs it, with all that it needs, into target/gpu-check, for a machine with an NVIDIA GPU.
  --run    runs it here too; results go to $OUT, or else to target/gpu-check/results

What the program itself takes (other GPUs, single sections, limits): target/gpu-check/run.sh --help, and docs/gpu-check.md.";

const BINARY: &str = "vram-gpu-check";
const PTX: [&str; 3] = ["blake3.ptx", "fingerprint.ptx", "probe.ptx"];
/// What a machine with a driver has: the C library, its loader, and the compiler's unwinder.
const LIBRARIES: [&str; 6] =
    ["linux-vdso.so.1", "libc.so.6", "libm.so.6", "libgcc_s.so.1", "/lib64/ld-linux-x86-64.so.2", "libdl.so.2"];
/// A folder that is larger cannot be handed on everywhere.
const MOST_BYTES: u64 = 64 << 20;

const SCRIPT: &str = r#"#!/bin/sh
# Checks and measures GPU 0. Results go to $OUT, or to the working directory; arguments are passed on (--help shows them).
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
need=GLIBC
have=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d' ' -f2)
oldest=$(printf '%s\n%s\n' "$need" "${have:-0}" | sort -V | head -n 1)
if [ "$oldest" != "$need" ]; then
    echo "vram-gpu-check: this machine has glibc ${have:-of no known version}, and the program needs $need or newer;" \
        "pack it on a system as old as this one, or run it in a container with a newer one" >&2
    exit 1
fi
exec "$here/vram-gpu-check" "$@"
"#;

const README: &str = "\
vram-gpu-check: what vram-residency does on an NVIDIA GPU, checked and measured on this machine.

Needs Linux on x86-64 with glibc GLIBC or newer, an NVIDIA driver of CUDA 11.8 or newer, and a GPU
that nobody else uses meanwhile. No Rust, no CUDA toolkit, no network. It changes no setting of the card.

    ./run.sh                    all sections, at most 8 minutes; writes gpu-check.json and gpu-check.md
    ./run.sh --out DIR          the results go there (without it: to $OUT, or else the working directory)
    ./run.sh --disk DIR         where 4 GiB are written for a moment, to measure the load from disk
    ./run.sh --only kernels     one section
    ./run.sh --help             the rest

It keeps about 64 GiB of the GPU's memory at most, and less where less is free. One section makes writes that the GPU must
refuse, each in a process of its own: the kernel's log then names illegal accesses (Xid 31 or the like). They are intended.

The .ptx files are the kernels as they are built into the program, for reading. What each section means is in
docs/gpu-check.md of the repository.
";

pub fn run_verb(ctx: &Ctx, mut args: Args) -> Result<()> {
    let here = args.take_flag("--run");
    args.finish()?;
    run(ctx.cargo().args(["build", "--release", "-p", "gpu-check"]))?;
    let dir = ctx.target.join("gpu-check");
    std::fs::create_dir_all(&dir)?;
    let binary = dir.join(BINARY);
    std::fs::copy(ctx.target.join("release").join(BINARY), &binary).context("the program was not built")?;
    for name in PTX {
        std::fs::copy(ctx.root.join("kernels/ptx").join(name), dir.join(name))
            .with_context(|| format!("{name} is not there"))?;
    }
    let glibc = newest_glibc(&capture(ctx.command("objdump").arg("-T").arg(&binary))?)?;
    std::fs::write(dir.join("README.txt"), README.replace("GLIBC", &glibc))?;
    let script = dir.join("run.sh");
    std::fs::write(&script, SCRIPT.replace("GLIBC", &glibc))?;
    run(ctx.command("chmod").arg("755").arg(&script))?;
    let linked = capture(ctx.command("ldd").arg(&binary))?;
    needs_only_the_c_library(&linked)?;
    let bytes = size(&dir)?;
    if bytes > MOST_BYTES {
        bail!("{} has {bytes} bytes, and {MOST_BYTES} are the most that can be handed on everywhere", dir.display());
    }
    say(&format!(
        "packed: {} ({:.1} MiB, for glibc {glibc} or newer)",
        dir.display(),
        bytes as f64 / f64::from(1 << 20)
    ));
    if here {
        let out = dir.join("results");
        std::fs::create_dir_all(&out)?;
        let out = std::env::var_os("OUT").map_or(out, Into::into);
        run(ctx.command(&script).arg("--out").arg(out).arg("--disk").arg(&ctx.target))?;
    }
    Ok(())
}

fn needs_only_the_c_library(linked: &str) -> Result<()> {
    for line in linked.lines() {
        let Some(name) = line.split_whitespace().next() else { continue };
        if !LIBRARIES.contains(&name) {
            bail!("{BINARY} needs {name}, which a machine with a driver may lack");
        }
    }
    Ok(())
}

/// The newest version of the C library that a program asks for, from its dynamic symbols. What is only asked for where it
/// is there (a weak symbol) does not count.
fn newest_glibc(symbols: &str) -> Result<String> {
    let needed = symbols.lines().filter(|line| !line.contains(" w "));
    let versions = needed.filter_map(|line| line.split("GLIBC_").nth(1)?.split(')').next());
    let number = |version: &str| version.split('.').map(|part| part.parse().unwrap_or(0)).collect::<Vec<u32>>();
    let newest = versions.max_by_key(|version| number(version));
    Ok(newest.context("objdump lists no symbol of the C library")?.to_owned())
}

fn size(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let data = entry?.metadata()?;
        bytes += if data.is_file() { data.len() } else { 0 };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_c_library_that_is_asked_for_is_found() {
        let symbols = "0000 DF *UND*  0000 (GLIBC_2.9) pipe2\n\
                       0000 DF *UND*  0000 (GLIBC_2.34) dlopen\n\
                       0000  w   DF *UND*  0000 (GLIBC_2.36) arc4random\n\
                       0000 DF *UND*  0000 (GLIBC_2.2.5) memcpy\n";
        assert_eq!(newest_glibc(symbols).ok().as_deref(), Some("2.34"));
        assert!(newest_glibc("no symbols\n").is_err());
    }

    #[test]
    fn a_library_that_a_bare_machine_lacks_is_refused() {
        let good =
            "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/libc.so.6 (0x2)\n\t/lib64/ld-linux-x86-64.so.2 (0x3)\n";
        assert!(needs_only_the_c_library(good).is_ok());
        let bad = format!("{good}\tlibssl.so.3 => not found\n");
        let error = needs_only_the_c_library(&bad).map_or_else(|error| error.to_string(), |()| String::new());
        assert!(error.contains("libssl.so.3"), "{error}");
    }
}
