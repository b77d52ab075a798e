//! The `page` step: the status page of a running daemon in a real browser, while a bit breaks and is repaired and the daemon
//! ends. What is tried is in `xtask/page/drive.mjs`.

use crate::Args;
use crate::daemon::{Daemon, Random};
use crate::shell::{Ctx, run, run_and_read};
use crate::{debian, tools};
use anyhow::{Context, Result, ensure};
use serde_json::{Map, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Drives the browser; looks for what keeps people out. Neither is shipped, neither brings other packages along.
const PACKAGES: [&str; 2] = ["playwright-core@1.65.1", "axe-core@4.14.1"];
const PERIOD_S: &str = "2";
/// Layers of the model on the page: 7 MiB each.
const LAYERS: usize = 8;

/// `cargo xtask page [--save]`.
pub fn step(ctx: &Ctx, args: &mut Args) -> Result<String> {
    let save = args.take_flag("--save");
    args.finish()?;
    let packages = tools::npm(ctx, "page", &PACKAGES)?;
    let chromium = debian::with_dependencies(ctx, "chromium", &["fonts-dejavu-core"])?;
    let key = key(ctx)?;
    let period = format!("{PERIOD_S}s");
    let daemon = Daemon::start(ctx, "page", &[4], &["--period", &period, "--budget", "50%", "--audit-key", &key])?;
    let (model, hostile) = (daemon.home.join("llama-tiny.safetensors"), daemon.home.join("names.safetensors"));
    make(&model, llama())?;
    make(&hostile, HOSTILE.map(|name| (name.to_owned(), vec![2048])))?;
    let loaded = daemon.ask(&["load", &model.to_string_lossy()])?;
    let shard = loaded[0]["shard_id"].as_str().context("vram load names no shard")?.to_owned();

    let libraries = library_path(&chromium)?;
    let mut drive = ctx.command("node");
    drive.arg("xtask/page/drive.mjs");
    drive.env("PAGE_TOOLS", packages).env("CHROMIUM", chromium.join("usr/lib/chromium/chromium"));
    drive.env("CHROMIUM_LIBRARIES", libraries).env("FONTS", fonts(&daemon.home, &chromium)?);
    drive.env("BASE", format!("http://{}", daemon.address)).env("VRAM", ctx.target.join("release/vram"));
    drive.env("SOCKET", daemon.home.join("s")).env("SHARD", shard).env("PERIOD_S", PERIOD_S);
    drive.env("DAEMON_PID", daemon.pid().to_string()).env("HOSTILE", hostile);
    drive.env("ATTACH", daemon.home.join("s-attach"));
    drive.env("SHOTS", if save { ctx.root.join("docs/images") } else { ctx.target.join("tmp/page-shots") });
    let said = run_and_read(&mut drive)?;
    let figures: Vec<&str> = said.iter().filter_map(|line| line.strip_prefix("figure ")).collect();
    ensure!(figures.len() >= 6, "the browser did not go through all of it: {figures:?}");
    Ok(figures.join("; "))
}

/// A key for the log, so that the page has something to say of what is signed.
fn key(ctx: &Ctx) -> Result<String> {
    run(ctx.cargo().args(["build", "--release", "-p", "vram"]))?;
    let home = ctx.target.join("tmp/page-key");
    let _ = std::fs::remove_dir_all(&home);
    std::fs::create_dir_all(&home)?;
    let key = home.join("audit.key").display().to_string();
    run(ctx.command(ctx.target.join("release/vram")).args(["audit", "keygen", "--audit-key", &key]))?;
    Ok(key)
}

/// Names that would do harm where they were taken for more than text.
const HOSTILE: [&str; 2] = ["<img src=x onerror=alert(1)>", "\u{202e}</script><script>alert(2)</script>"];

/// The tensors of a small language model, and their shapes.
fn llama() -> Vec<(String, Vec<u64>)> {
    const PARTS: [(&str, &[u64]); 6] = [
        ("input_layernorm", &[512]),
        ("self_attn.qkv_proj", &[1536, 512]),
        ("self_attn.o_proj", &[512, 512]),
        ("mlp.up_proj", &[2560, 512]),
        ("mlp.down_proj", &[512, 2560]),
        ("post_attention_layernorm", &[512]),
    ];
    let named = |name: &str, shape: &[u64]| (format!("model.{name}.weight"), shape.to_vec());
    let mut tensors = vec![named("embed_tokens", &[4096, 512])];
    for layer in 0..LAYERS {
        tensors.extend(PARTS.map(|(part, shape)| named(&format!("layers.{layer}.{part}"), shape)));
    }
    tensors.push(named("norm", &[512]));
    tensors
}

/// A model of such tensors of BF16, with pseudo-random bytes.
fn make(path: &Path, tensors: impl IntoIterator<Item = (String, Vec<u64>)>) -> Result<()> {
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let bytes = shape.iter().product::<u64>() * 2;
        header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [end, end + bytes]}));
        end += bytes;
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let mut random = Random(20_261_125);
    for _ in 0..end / 8 {
        file.write_all(&random.next().to_le_bytes())?;
    }
    Ok(file.flush()?)
}

/// Where the unpacked libraries are.
fn library_path(root: &Path) -> Result<String> {
    let mut dirs: Vec<PathBuf> = Vec::new();
    for base in ["usr/lib", "lib"] {
        for entry in std::fs::read_dir(root.join(base)).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().ends_with("-linux-gnu") {
                dirs.extend([entry.path().join("pulseaudio"), entry.path()]);
            }
        }
    }
    dirs.retain(|dir| dir.is_dir());
    ensure!(!dirs.is_empty(), "no libraries lie in {}", root.display());
    Ok(std::env::join_paths(dirs)?.to_string_lossy().into_owned())
}

/// A configuration with the unpacked fonts and no others, so that pictures look the same everywhere.
fn fonts(home: &Path, root: &Path) -> Result<PathBuf> {
    let file = home.join("fonts.conf");
    let text = format!(
        "<fontconfig><dir>{}</dir><cachedir>{}</cachedir><alias><family>monospace</family><prefer>\
         <family>DejaVu Sans Mono</family></prefer></alias></fontconfig>\n",
        root.join("usr/share/fonts").display(),
        home.join("font-cache").display()
    );
    std::fs::write(&file, text)?;
    Ok(file)
}
