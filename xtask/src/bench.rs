//! `cargo xtask bench`: ourselves and a peer, turn by turn, on the same file in the page cache.
//!
//! Seconds on a machine that others use too mean little; the ratio of two runs that lie side by side means more. So
//! every round runs both, the first round is thrown away, and the table shows medians and the spread of the ratios.

use crate::report::{self, Pair, Report, Row, Wanted};
use crate::shell::{self, Ctx, Usage, capture, say};
use crate::{Args, tools};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

pub const HELP: &str = "speed beside b3sum and model-signing; --save keeps the table in docs/";

const MIN_ROUNDS: u64 = 5;
/// Within a round the peer runs this often and its median counts, because ours counts by a median too.
const PEER_RUNS: u32 = 3;
const MIB: u64 = 1 << 20;
const FILE_BYTES: u64 = 2048 * MIB;

/// Makes the key pair for model-signing: its own environment brings the library that can.
const MAKE_KEY: &str = "import sys
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ec
key = ec.generate_private_key(ec.SECP256R1())
open(sys.argv[1], 'wb').write(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
open(sys.argv[2], 'wb').write(key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))";

/// One round: what `vram bench` said of itself, and how long the peers took.
struct Round {
    vram: Value,
    b3sum_s: f64,
    signing_s: f64,
    signing_start_s: f64,
}

pub fn run(ctx: &Ctx, mut args: Args) -> Result<()> {
    let save = args.take_flag("--save");
    let rounds = args.take_number("--rounds")?.unwrap_or(MIN_ROUNDS);
    args.finish()?;
    if rounds < MIN_ROUNDS {
        return Err(Usage::err(format!("fewer than {MIN_ROUNDS} rounds say nothing about the spread")));
    }
    shell::run(ctx.cargo().args(["build", "--release", "-p", "vram"]))?;
    let dir = ctx.target.join("bench");
    std::fs::create_dir_all(&dir)?;
    let kind = refuse_memory(ctx, &dir)?;
    let file = make_file(&dir)?;
    let b3sum = tools::b3sum(ctx)?;
    let signing = Signing::prepare(ctx, &dir)?;
    signing.sign(ctx, &file)?;

    let vram = ctx.target.join("release/vram");
    let mut measured = Vec::new();
    for round in 0..=rounds {
        warm(&file)?;
        // On the same disk as the file, and apart from the user's own log.
        let mut bench = ctx.command(&vram);
        bench.env("TMPDIR", &dir).env("XDG_STATE_HOME", dir.join("state"));
        let text = capture(bench.args(["bench", "--json", "--file"]).arg(&file))?;
        let vram = serde_json::from_str(&text).context("`vram bench --json` did not print one JSON object")?;
        let b3sum_s = seconds(|| capture(ctx.command(&b3sum).arg(&file)))?;
        let signing_s = seconds(|| signing.verify(ctx, &file))?;
        let signing_start_s = seconds(|| signing.verify(ctx, &signing.tiny))?;
        let name = if round == 0 { String::from("warm-up") } else { format!("round {round}/{rounds}") };
        say(&format!("{name}: b3sum {b3sum_s:.3} s, model_signing verify {signing_s:.3} s"));
        if round > 0 {
            measured.push(Round { vram, b3sum_s, signing_s, signing_start_s });
        }
    }

    let report = Report {
        date: capture(ctx.command("date").arg("+%F"))?.trim().to_owned(),
        facts: facts(ctx, &kind),
        rows: rows(&measured)?,
        details: report::details(measured.iter().map(|round| &round.vram)),
    };
    let text = report.markdown();
    say(&format!("\n{text}"));
    if save {
        let path = ctx.root.join(format!("docs/measurements/bench-{}.md", report.date));
        std::fs::create_dir_all(path.parent().context("the file lies in a folder")?)?;
        std::fs::write(&path, &text)?;
        say(&format!("written to {}", path.display()));
    }
    Ok(())
}

fn seconds<T>(work: impl Fn() -> Result<T>) -> Result<f64> {
    let mut list = Vec::new();
    for _ in 0..PEER_RUNS {
        let start = Instant::now();
        work()?;
        list.push(start.elapsed().as_secs_f64());
    }
    Ok(report::median(&list))
}

/// The table's rows: each a list of pairs (ours, the peer's) and what is wanted of the ratio.
fn rows(rounds: &[Round]) -> Result<Vec<Row>> {
    let (mut verify, mut floor, mut signing, mut net, mut rate) = (vec![], vec![], vec![], vec![], vec![]);
    let (mut huge_signing, mut huge_gain) = (vec![], vec![]);
    for round in rounds {
        let bytes = report::number(&round.vram, &["verify", "bytes"])?;
        let verify_s = report::median(&report::numbers(&round.vram, &["verify", "seconds"])?);
        verify.push(Pair { ours: bytes / verify_s / 1e9, peer: FILE_BYTES as f64 / round.b3sum_s / 1e9 });
        let seals = report::numbers(&round.vram, &["seal", "seconds"])?;
        let floors = report::numbers(&round.vram, &["seal", "floor_seconds"])?;
        if seals.len() != floors.len() {
            bail!("`vram bench` reports {} seals and {} floors: they must be pairs", seals.len(), floors.len());
        }
        floor.extend(seals.iter().zip(&floors).map(|(&ours, &peer)| Pair { ours, peer }));
        let ours = report::median(&seals);
        signing.push(Pair { ours, peer: round.signing_s });
        net.push(Pair { ours, peer: round.signing_s - round.signing_start_s });
        // Only where an administrator has switched huge pages on for shared memory.
        if round.vram.pointer("/huge_pages/seal_seconds").is_some_and(|list| !list.is_null()) {
            let huge = report::median(&report::numbers(&round.vram, &["huge_pages", "seal_seconds"])?);
            huge_signing.push(Pair { ours: huge, peer: round.signing_s });
            huge_gain.push(Pair { ours: huge, peer: ours });
        }
        rate.push(report::number(&round.vram, &["audit", "rates", "64"])?);
    }
    let mut rows = vec![
        Row::compare("verify, GB/s, beside `b3sum`", verify, true, Some(Wanted::AtLeast(1.2))),
        Row::compare("seal, s, over the floor of the same run", floor, true, Some(Wanted::AtMost(1.25))),
        Row::compare("seal, s, beside `model_signing verify`", signing, false, Some(Wanted::AtLeast(3.0))),
        Row::compare("the same, less the peer's start on a tiny file", net, false, None),
        Row::figure("durable records/s at 64 threads", rate, Wanted::AtLeast(50_000.0)),
    ];
    if !huge_gain.is_empty() {
        rows.push(Row::compare("seal with huge pages, s, beside the same without", huge_gain, false, None));
        let name = "seal with huge pages, s, beside `model_signing verify`";
        rows.push(Row::compare(name, huge_signing, false, Some(Wanted::AtLeast(3.0))));
    }
    Ok(rows)
}

/// A file system in memory would make the floor a different one, and 2 GiB of it are not ours to take.
fn refuse_memory(ctx: &Ctx, dir: &Path) -> Result<String> {
    // `findmnt` knows more names than `stat`, which calls ext4 "ext2/ext3"; `stat` is everywhere.
    let kind = capture(ctx.command("findmnt").args(["--noheadings", "--output", "FSTYPE", "--target"]).arg(dir))
        .or_else(|_| capture(ctx.command("stat").args(["--file-system", "--format=%T"]).arg(dir)))?;
    let kind = kind.trim().to_owned();
    if kind == "tmpfs" || kind == "ramfs" {
        bail!("{} is on {kind}; point CARGO_TARGET_DIR at a real disk", dir.display());
    }
    Ok(kind)
}

/// A valid safetensors file of one tensor, so that it can be read as a model and as raw bytes alike. Its content is
/// pseudo-random: nothing below may gain from zeros or repetitions.
fn make_file(dir: &Path) -> Result<PathBuf> {
    let path = dir.join("random-2gib.safetensors");
    if std::fs::metadata(&path).is_ok_and(|meta| meta.len() == FILE_BYTES) {
        return Ok(path);
    }
    say(&format!("writing {FILE_BYTES} bytes to {}", path.display()));
    let part = dir.join("random.part");
    let mut file = File::create(&part).with_context(|| part.display().to_string())?;
    let head = header(FILE_BYTES);
    file.write_all(&head)?;
    let (mut left, mut state) = (FILE_BYTES - head.len() as u64, 0);
    let mut buffer = vec![0; MIB as usize];
    while left > 0 {
        fill(&mut buffer, &mut state);
        let now = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        file.write_all(buffer.get(..now).context("a part of the buffer")?)?;
        left -= now as u64;
    }
    file.sync_all()?; // no writing back in the background while we measure
    std::fs::rename(&part, &path)?;
    Ok(path)
}

/// Length and JSON, padded with spaces so that the data starts on a 256-byte boundary.
fn header(total: u64) -> Vec<u8> {
    const HEAD: u64 = 256;
    let data = total - HEAD;
    let json = format!(r#"{{"weight":{{"dtype":"U8","shape":[{data}],"data_offsets":[0,{data}]}}}}"#);
    let length = HEAD - 8;
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    bytes.resize(HEAD as usize, b' ');
    bytes
}

/// SplitMix64.
fn fill(buffer: &mut [u8], state: &mut u64) {
    for word in buffer.chunks_mut(8) {
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let bytes = (z ^ (z >> 31)).to_le_bytes();
        word.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    }
}

/// Reads the file once, so that every contender finds it in the page cache.
fn warm(path: &Path) -> Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; MIB as usize];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

/// PyPI's model-signing with a key pair made for the occasion.
struct Signing {
    program: PathBuf,
    private: PathBuf,
    public: PathBuf,
    /// Verifying this takes no time but the start: a Python interpreter and its imports.
    tiny: PathBuf,
}

impl Signing {
    fn prepare(ctx: &Ctx, dir: &Path) -> Result<Self> {
        let program = tools::model_signing(ctx)?;
        let (private, public) = (dir.join("signing.key"), dir.join("signing.pub"));
        shell::run(ctx.command(tools::python(ctx)?).args(["-c", MAKE_KEY]).arg(&private).arg(&public))?;
        let tiny = dir.join("tiny.bin");
        std::fs::write(&tiny, [0; 1024])?;
        let signing = Self { program, private, public, tiny };
        signing.sign(ctx, &signing.tiny)?;
        Ok(signing)
    }

    fn sign(&self, ctx: &Ctx, file: &Path) -> Result<()> {
        let mut command = ctx.command(&self.program);
        command.args(["sign", "key"]).arg(file).arg("--private_key").arg(&self.private);
        shell::run(command.arg("--signature").arg(signature(file)))
    }

    fn verify(&self, ctx: &Ctx, file: &Path) -> Result<String> {
        let mut command = ctx.command(&self.program);
        command.args(["verify", "key"]).arg(file).arg("--public_key").arg(&self.public);
        capture(command.arg("--signature").arg(signature(file)))
    }
}

fn signature(file: &Path) -> PathBuf {
    file.with_extension("sig")
}

/// What the figures depend on, each as the system states it; what it does not state is left out.
fn facts(ctx: &Ctx, file_system: &str) -> Vec<(&'static str, String)> {
    let read = |path: &str, key: &str| -> Option<String> {
        let text = std::fs::read_to_string(path).ok()?;
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':').map_or(line, |(_, value)| value).trim().to_owned())
    };
    let say =
        |program: &str, args: &[&str]| capture(ctx.command(program).args(args)).ok().map(|text| text.trim().to_owned());
    let cores = std::thread::available_parallelism().ok().map(|cores| cores.to_string());
    // Those that decide how fast a hash is.
    let extensions = read("/proc/cpuinfo", "flags").map(|flags| {
        let wanted = ["avx2", "avx512f", "sha_ni"];
        let found: Vec<&str> = flags.split(' ').filter(|flag| wanted.contains(flag)).collect();
        found.join(" ")
    });
    let changed = say("git", &["status", "--porcelain"]).is_some_and(|text| !text.is_empty());
    let commit = say("git", &["rev-parse", "--short", "HEAD"])
        .map(|commit| if changed { format!("{commit} with changes") } else { commit });
    let list = [
        ("CPU", read("/proc/cpuinfo", "model name")),
        ("of its extensions", extensions),
        ("cores", cores),
        ("memory", read("/proc/meminfo", "MemTotal")),
        ("kernel", say("uname", &["-sr"])),
        ("file system", Some(file_system.to_owned())),
        ("compiler", say("rustc", &["--version"])),
        ("commit", commit),
        ("date", say("date", &["-u", "+%F %H:%M UTC"])),
    ];
    list.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(rate: u64) -> Result<Round> {
        let text = format!(
            r#"{{"verify":{{"bytes":2000000000,"seconds":[0.25,0.2,0.3],"gb_per_s":8.0}},
            "seal":{{"bytes":2000000000,"seconds":[1.1,1.2],"floor_seconds":[1.0,1.0],"breakdown":{{"hash_s":0.3}}}},
            "audit":{{"critical":{{"p50_us":900.0}},"rates":{{"1":900,"64":{rate}}}}}}}"#
        );
        Ok(Round { vram: serde_json::from_str(&text)?, b3sum_s: 0.5, signing_s: 4.6, signing_start_s: 0.6 })
    }

    #[test]
    fn rows_follow_from_what_was_measured() -> Result<()> {
        let rows = rows(&[round(60_000)?, round(70_000)?, round(50_000)?])?;
        let ratios: Vec<f64> = rows.iter().map(|row| (row.middle() * 1000.0).round() / 1000.0).collect();
        assert_eq!(ratios, [1.863, 1.15, 4.0, 3.478, 60_000.0]);
        assert!(rows.iter().all(|row| row.held() != Some(false)));
        Ok(())
    }

    #[test]
    fn seals_without_their_floor_are_refused() -> Result<()> {
        let mut bad = round(1)?;
        bad.vram = serde_json::from_str(&bad.vram.to_string().replace("[1.0,1.0]", "[1.0]"))?;
        assert!(rows(&[bad]).is_err());
        Ok(())
    }

    #[test]
    fn the_header_is_what_safetensors_asks_for() -> Result<()> {
        let bytes = header(1024);
        assert_eq!((bytes.len(), bytes[0], bytes[8]), (256, 248, b'{'));
        let json: Value = serde_json::from_slice(&bytes[8..])?;
        assert_eq!(json["weight"]["data_offsets"][1], 768);
        Ok(())
    }

    #[test]
    fn the_content_is_always_the_same() {
        let (mut buffer, mut state) = ([0; 12], 0);
        fill(&mut buffer, &mut state);
        // The published first value of SplitMix64 with seed 0.
        assert_eq!(buffer[..8], 0xE220_A839_7B1D_CDAF_u64.to_le_bytes());
    }
}
