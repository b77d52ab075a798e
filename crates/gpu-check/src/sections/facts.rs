//! What the card and its driver state, and what the driver says of each kind of memory.

use anyhow::Result;
use vram_residency::device::cuda_measure::{MemoryKind, Statements};

use super::{Bench, MIB};

pub(super) fn run(bench: &Bench<'_>) -> Result<()> {
    let facts = &bench.facts;
    let mut rows = vec![
        vec!["name".to_owned(), facts.name.clone()],
        vec!["driver, as a release of CUDA".to_owned(), facts.driver.clone()],
        vec!["library".to_owned(), facts.library.clone()],
        vec!["PCI".to_owned(), facts.pci.clone()],
        vec!["memory, bytes".to_owned(), facts.total_bytes.to_string()],
        vec!["free, bytes".to_owned(), facts.free_bytes.to_string()],
        vec!["granularity, bytes".to_owned(), facts.granularity_bytes.to_string()],
        vec!["priorities of streams, lowest to highest (default: 0)".to_owned(), {
            let (lowest, highest) = facts.priorities;
            format!("{lowest} to {highest}")
        }],
    ];
    rows.extend(facts.attributes.iter().map(|(name, value)| vec![(*name).to_owned(), number(*value)]));
    bench.sink.table("The card", &["what", "stated"], rows);

    let device = bench.device()?;
    let chosen = device.facts();
    let rows = vec![
        vec!["variant chosen by measurement".to_owned(), chosen.variant.to_string()],
        vec!["kernels, SHA-256".to_owned(), chosen.kernels_sha256.clone()],
        vec!["driver may cache compiled kernels".to_owned(), chosen.kernel_cache.to_string()],
    ];
    bench.sink.table("The device as the library opens it", &["what", "found"], rows);
    drop(device);
    memories(bench)
}

/// The negative test of a residency check: what the driver says of memory that is not a sealed region.
fn memories(bench: &Bench<'_>) -> Result<()> {
    let kinds = [
        ("cuMemCreate, read-write", MemoryKind::Virtual),
        ("cuMemAlloc", MemoryKind::Plain),
        ("cuMemAllocManaged", MemoryKind::Managed),
        ("cuMemHostRegister", MemoryKind::Registered),
    ];
    let mut columns = vec!["memory".to_owned()];
    let mut rows = Vec::new();
    let mut add = |name: &str, statements: Statements| {
        if columns.len() == 1 {
            columns.extend(statements.iter().map(|(name, _)| (*name).to_owned()));
        }
        let said = statements.into_iter().map(|(_, value)| number(value));
        rows.push(std::iter::once(name.to_owned()).chain(said).collect());
    };
    let mut refused = Vec::new();
    for (name, kind) in kinds {
        match bench.gpu.allocate(kind, MIB) {
            Ok(memory) => {
                add(name, bench.gpu.statements(&memory)?);
                if kind == MemoryKind::Virtual {
                    match memory.set_writable(false) {
                        Ok(()) => add("cuMemCreate, read-only", bench.gpu.statements(&memory)?),
                        Err(error) => refused.push(vec![String::from("cuMemCreate, read-only"), error.to_string()]),
                    }
                }
            }
            Err(error) => refused.push(vec![name.to_owned(), error.to_string()]),
        }
    }
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    bench.sink.table("What the driver says of memory; - where it gives no answer", &columns, rows);
    if !refused.is_empty() {
        bench.sink.table("Memory that could not be had", &["memory", "reason"], refused);
    }
    Ok(())
}

fn number<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| String::from("-"), |value| value.to_string())
}
