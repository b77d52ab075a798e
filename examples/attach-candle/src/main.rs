//! A BERT encoder (`all-MiniLM-L6-v2`) in candle, twice: with the weights from the file, and with the weights that a
//! daemon keeps resident, read in place.
//!
//! ```console
//! $ vram serve model.safetensors
//! $ cargo run -- model.safetensors vocab.txt "Weights stay where they are."
//! ```
//!
//! candle's own CPU tensors always own a `Vec`: whatever is loaded into one is copied, from a mapped file too. So the
//! attached weights are no candle tensors here. They are operands of candle operations ([`CustomOp1`]) that read them
//! where they are; only activations are candle tensors.

mod bert;
mod tokens;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bert::{Attached, FromFile, embed};
use candle_core::Device;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, vocabulary, sentence] = arguments.as_slice() else {
        anyhow::bail!(
            "usage: attach-candle model.safetensors vocab.txt SENTENCE; set VRAM_ATTACH_SOCKET to the socket"
        );
    };
    let ids = tokens::encode(&std::fs::read_to_string(vocabulary)?, sentence)?;
    println!("{} tokens: {ids:?}", ids.len());

    // First in place: what it takes is seen before anything else was loaded.
    let name = Path::new(file).file_name().and_then(|name| name.to_str()).context("the file has no name")?;
    let before = private_kib()?;
    let begun = Instant::now();
    let model = vram_residency::client::connect()?.attach(name)?;
    let took = begun.elapsed();
    let attached = embed(&Attached(&model), &ids)?;
    let taken = private_kib()?.saturating_sub(before);
    println!(
        "attached  {} bytes in {took:.2?}; own memory, activations included: {taken} KiB more",
        model.bytes().len()
    );
    let digest = model.verify()?;
    println!("verified  {digest}, by this process, of the bytes that it used");

    let before = private_kib()?;
    let loaded = FromFile(candle_core::safetensors::load(file, &Device::Cpu)?);
    let from_file = embed(&loaded, &ids)?;
    println!("from file own memory: {} KiB more", private_kib()?.saturating_sub(before));

    let difference = attached.iter().zip(&from_file).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let cosine: f32 = attached.iter().zip(&from_file).map(|(a, b)| a * b).sum();
    println!("embedding {:?} ... of {} numbers", &attached[..4], attached.len());
    println!("both ways the largest difference is {difference:e}, the cosine {cosine:.7}");
    ensure!(attached.len() == from_file.len() && difference < 1e-5, "the embeddings differ");
    ensure!(model.watch()?.is_verified(), "the daemon does not call the shard verified");
    println!("ok        the same embedding, and no weight was copied");
    Ok(())
}

/// This process's own memory: neither shared nor of files.
fn private_kib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
