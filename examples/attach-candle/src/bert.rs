//! The encoder, over weights that are somewhere.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use candle_core::{CpuStorage, CustomOp1, D, Device, Layout, Shape, Tensor};
use vram_residency::client;
use vram_residency::model::Dtype;

const LAYERS: usize = 6;
const HEADS: usize = 12;
const EPSILON: f32 = 1e-12;

/// What the encoder needs of its weights.
pub trait Weights {
    /// Rows of a table.
    fn rows(&self, name: &str, rows: &[u32]) -> Result<Tensor>;
    /// `x · Wᵀ + b`
    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor>;
    /// Each row to mean 0 and variance 1, then scaled and moved.
    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor>;
}

/// The sentence's embedding: the mean over its tokens, of length 1.
pub fn embed(weights: &impl Weights, ids: &[u32]) -> Result<Vec<f32>> {
    let positions: Vec<u32> = (0..).take(ids.len()).collect();
    let words = weights.rows("embeddings.word_embeddings.weight", ids)?;
    let places = weights.rows("embeddings.position_embeddings.weight", &positions)?;
    let kinds = weights.rows("embeddings.token_type_embeddings.weight", &vec![0; ids.len()])?;
    let mut x = weights.norm(&((words + places)? + kinds)?, "embeddings.LayerNorm")?;
    for layer in 0..LAYERS {
        x = encode(weights, &x, &format!("encoder.layer.{layer}"))?;
    }
    let mean = x.mean(0)?;
    let length = mean.sqr()?.sum_all()?.sqrt()?;
    Ok(mean.broadcast_div(&length)?.to_vec1()?)
}

fn encode(weights: &impl Weights, x: &Tensor, layer: &str) -> Result<Tensor> {
    let (tokens, width) = x.dims2()?;
    let per_head = width / HEADS;
    let heads = |part: &str| -> Result<Tensor> {
        let all = weights.linear(x, &format!("{layer}.attention.self.{part}"))?;
        Ok(all.reshape((tokens, HEADS, per_head))?.transpose(0, 1)?.contiguous()?)
    };
    let (query, key, value) = (heads("query")?, heads("key")?, heads("value")?);
    let scores = (query.matmul(&key.transpose(1, 2)?.contiguous()?)? / (per_head as f64).sqrt())?;
    let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let shares = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
    let seen = shares.matmul(&value)?.transpose(0, 1)?.contiguous()?.reshape((tokens, width))?;
    let seen = weights.linear(&seen, &format!("{layer}.attention.output.dense"))?;
    let x = weights.norm(&(seen + x)?, &format!("{layer}.attention.output.LayerNorm"))?;
    let thought = weights.linear(&x, &format!("{layer}.intermediate.dense"))?.gelu_erf()?;
    let thought = weights.linear(&thought, &format!("{layer}.output.dense"))?;
    weights.norm(&(thought + x)?, &format!("{layer}.output.LayerNorm"))
}

/// Weights as candle loads them: copied into its own tensors, multiplied by its own matrix product.
pub struct FromFile(pub HashMap<String, Tensor>);

impl FromFile {
    fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.0.get(name).with_context(|| format!("the file has no {name}"))
    }
}

impl Weights for FromFile {
    fn rows(&self, name: &str, rows: &[u32]) -> Result<Tensor> {
        Ok(self.tensor(name)?.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?)
    }

    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let product = x.matmul(&self.tensor(&format!("{name}.weight"))?.t()?)?;
        Ok(product.broadcast_add(self.tensor(&format!("{name}.bias"))?)?)
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let spread = (centred.sqr()?.mean_keepdim(D::Minus1)? + f64::from(EPSILON))?.sqrt()?;
        let scaled = centred.broadcast_div(&spread)?.broadcast_mul(self.tensor(&format!("{name}.weight"))?)?;
        Ok(scaled.broadcast_add(self.tensor(&format!("{name}.bias"))?)?)
    }
}

/// Weights in the daemon's memory, where they stay.
pub struct Attached<'a>(pub &'a client::Attached);

impl<'a> Attached<'a> {
    fn floats(&self, name: &str) -> Result<&'a [f32]> {
        let tensor = self.0.tensor(name).with_context(|| format!("the shard has no {name}"))?;
        ensure!(tensor.dtype == Dtype::F32, "{name} is {}, and this example takes F32", tensor.dtype);
        let floats = bytemuck::try_cast_slice(tensor.bytes);
        floats.map_err(|error| anyhow::anyhow!("{name} does not lie as floats must: {error}"))
    }

    fn pair(&self, name: &str) -> Result<(&'a [f32], &'a [f32])> {
        Ok((self.floats(&format!("{name}.weight"))?, self.floats(&format!("{name}.bias"))?))
    }
}

impl Weights for Attached<'_> {
    fn rows(&self, name: &str, rows: &[u32]) -> Result<Tensor> {
        let width = self.0.tensor(name).and_then(|tensor| tensor.shape.last().copied()).context("no table")?;
        let table = self.floats(name)?;
        let row = |row: &u32| table.chunks_exact(width as usize).nth(*row as usize).context("no such row");
        // The rows of this sentence's words become activations here, as in any lookup.
        let picked = rows.iter().map(row).collect::<Result<Vec<_>>>()?.concat();
        Ok(Tensor::from_vec(picked, (rows.len(), width as usize), &Device::Cpu)?)
    }

    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let (weight, bias) = self.pair(name)?;
        Ok(x.apply_op1_no_bwd(&InPlace { weight, bias, row: linear_row })?)
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let (weight, bias) = self.pair(name)?;
        Ok(x.apply_op1_no_bwd(&InPlace { weight, bias, row: norm_row })?)
    }
}

/// A candle operation on each row of a matrix, with weights that are read where they are. A row of the result has as many
/// numbers as `bias`.
struct InPlace<'a> {
    weight: &'a [f32],
    bias: &'a [f32],
    row: fn(&[f32], &[f32], &[f32], &mut [f32]),
}

impl CustomOp1 for InPlace<'_> {
    fn name(&self) -> &'static str {
        "weights-in-place"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("the rows are not in one piece")
        };
        let input = &storage.as_slice::<f32>()?[start..end];
        let mut output = vec![0.0; rows * self.bias.len()];
        for (x, y) in input.chunks_exact(width).zip(output.chunks_exact_mut(self.bias.len())) {
            (self.row)(x, self.weight, self.bias, y);
        }
        Ok((CpuStorage::F32(output), Shape::from((rows, self.bias.len()))))
    }
}

fn linear_row(x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32]) {
    for ((y, weights), bias) in y.iter_mut().zip(weight.chunks_exact(x.len())).zip(bias) {
        *y = dot(x, weights) + bias;
    }
}

/// In lanes, so that the compiler may use the wide registers.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, b) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let mut lanes = [0.0; 16];
    for (a, b) in a.0.iter().zip(b.0) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    let rest: f32 = a.1.iter().zip(b.1).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + rest
}

fn norm_row(x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32]) {
    let count = x.len() as f32;
    let mean = x.iter().sum::<f32>() / count;
    let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / count;
    let spread = (variance + EPSILON).sqrt();
    for (((y, x), weight), bias) in y.iter_mut().zip(x).zip(weight).zip(bias) {
        *y = (x - mean) / spread * weight + bias;
    }
}
