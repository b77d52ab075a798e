//! The `kernels` step: the checked-in PTX is what the sources give, assembles for every chip that we name, keeps its
//! budget of instructions and registers, and its sources compute what they should on a CPU; and what the code takes the
//! driver's interface to be is what NVIDIA's own header says. No GPU is needed.

mod sass;

use crate::shell::{Ctx, capture_both, run, say};
use crate::steps::Count;
use crate::{Args, tools};
use anyhow::{Context, Result, bail};
use sass::{Loop, Width};
use std::path::Path;

const MODULES: [&str; 3] = ["blake3", "fingerprint", "probe"];

/// An assembler, the oldest and the newest that we support, and the chips that it is asked for.
struct Assembler {
    package: &'static str,
    version: &'static str,
    program: &'static str,
    chips: &'static [u32],
}

const ASSEMBLERS: [Assembler; 2] = [
    Assembler {
        package: "nvidia-cuda-nvcc-cu12",
        version: "12.0.76",
        program: "nvidia/cuda_nvcc/bin/ptxas",
        chips: &[70, 75, 80, 86, 89, 90],
    },
    Assembler {
        package: "nvidia-cuda-nvcc",
        version: "13.5.37",
        program: "nvidia/cu13/bin/ptxas",
        chips: &[75, 80, 90, 100, 120],
    },
];

const DISASSEMBLER: (&str, &str, &str) = ("nvidia-cuda-nvdisasm", "13.5.37", "nvidia/cu13/bin/nvdisasm");

/// Packages with a `cuda.h`: the oldest release whose driver will do, and the last of each major release since.
const HEADERS: [(&str, &str, &str); 3] = [
    ("nvidia-cuda-runtime-cu11", "11.8.89", "nvidia/cuda_runtime/include"),
    ("nvidia-cuda-runtime-cu12", "12.9.79", "nvidia/cuda_runtime/include"),
    ("nvidia-cuda-runtime", "13.5.37", "nvidia/cu13/include"),
];

/// The chips that the disassembler knows, and on which the pipe of an instruction is known. On sm_120 a plain addition
/// is one instruction for more than one pipe, so its counts are shown and not judged.
const COUNTED: [u32; 6] = [75, 80, 86, 89, 90, 100];

/// What a hot loop may cost: instructions on the integer pipe per 64 bytes, and registers.
struct Budget {
    kernel: &'static str,
    alu: f64,
    registers: u32,
}

const BUDGETS: [Budget; 3] = [
    Budget { kernel: "vram_blake3_chunks_plain", alu: 600.0, registers: 64 },
    Budget { kernel: "vram_blake3_chunks_mad", alu: 480.0, registers: 64 },
    Budget { kernel: "vram_nh_tiles", alu: 100.0, registers: 64 },
];

/// `cargo xtask kernels`.
pub fn step(ctx: &Ctx, args: &mut Args) -> Result<String> {
    args.finish()?;
    let mut check = ctx.command(tools::python(ctx)?);
    run(check.args(["kernels/build.py", "--check", "--tools"]).arg(tools::wheels(ctx)))?;

    let disassembler = tools::wheel(ctx, DISASSEMBLER.0, DISASSEMBLER.1, DISASSEMBLER.2)?;
    let mut built = Vec::new();
    for assembler in &ASSEMBLERS {
        let program = tools::wheel(ctx, assembler.package, assembler.version, assembler.program)?;
        for &chip in assembler.chips {
            for module in MODULES {
                built.extend(assemble(ctx, &program, &disassembler, assembler.version, chip, module)?);
            }
        }
    }
    say(&format!("\n{}", Built::HEAD));
    let (hot, others): (Vec<&Built>, Vec<&Built>) = built.iter().partition(|kernel| kernel.budget().is_some());
    hot.iter().for_each(|kernel| say(&kernel.to_string()));
    let most = |of: fn(&Built) -> u32| others.iter().map(|kernel| of(kernel)).max().unwrap_or(0);
    let (registers, spilled) = (most(|kernel| kernel.registers), most(|kernel| kernel.spilled));
    say(&format!("The other kernels: {registers} registers at most, {spilled} bytes spilled."));
    say(
        "Per 64 bytes of the loop that reads 16 bytes at once, and of the one that reads 8. ALU is what only the integer",
    );
    say(
        "pipe takes; on sm_120, where this is not known, the number is of all that may be. sm_70 is not disassembled.\n",
    );
    let broken: Vec<String> = built.iter().flat_map(Built::judge).collect();
    if !broken.is_empty() {
        bail!("{}", broken.join("; "));
    }

    let mut count = Count::default();
    for flags in ["", "-fsanitize=undefined -fno-sanitize-recover=undefined"] {
        let mut test = ctx.cargo();
        // The whole workspace, as step `unit` does: other features would compile everything once more.
        test.args(["test", "--workspace", "--test", "kernels"]).env("VRAM_REQUIRE_KERNELS", "1");
        if !flags.is_empty() {
            test.env("VRAM_KERNELS_CXXFLAGS", flags);
        }
        count.run(&mut test)?;
    }
    let headers = HEADERS.map(|(package, version, include)| tools::cuda_header(ctx, package, version, include));
    let headers = headers.into_iter().collect::<Result<Vec<_>>>()?;
    let mut test = ctx.cargo();
    test.args(["test", "--workspace", "--test", "header", "--", "--ignored", "--nocapture"]);
    count.run(test.env("VRAM_CUDA_HEADERS", std::env::join_paths(headers)?))?;
    if count.passed == 0 {
        bail!("no test was executed");
    }
    Ok(format!("{} kernels assembled, all within budget; {count}", built.len()))
}

/// A kernel, assembled for one chip.
struct Built {
    assembler: &'static str,
    chip: u32,
    kernel: String,
    registers: u32,
    /// Bytes of stack, spill stores and spill loads together.
    spilled: u32,
    /// The hot loops, where there are any and the disassembler knows the chip.
    by_16: Option<Loop>,
    by_8: Option<Loop>,
}

impl Built {
    const HEAD: &'static str = "ptxas    chip    kernel                    registers  spilled | by 16: ALU  IMAD  wide  load other | by 8: ALU  IMAD  wide  load other";

    fn budget(&self) -> Option<&'static Budget> {
        BUDGETS.iter().find(|budget| budget.kernel == self.kernel)
    }

    /// What is over budget, each in a sentence's part.
    fn judge(&self) -> Vec<String> {
        let name = format!("{} for sm_{} (ptxas {})", self.kernel, self.chip, self.assembler);
        let mut broken = Vec::new();
        if self.spilled != 0 {
            broken.push(format!("{name} has {} bytes of stack or spills, and may have none", self.spilled));
        }
        let Some(budget) = self.budget() else { return broken };
        if self.registers > budget.registers {
            broken.push(format!("{name} takes {} registers of {} allowed", self.registers, budget.registers));
        }
        if COUNTED.contains(&self.chip) {
            for (hot, width) in [(&self.by_16, "16"), (&self.by_8, "8")] {
                match hot {
                    None => broken.push(format!("{name} has no loop that reads {width} bytes at once")),
                    Some(hot) if hot.per_64(hot.alu) > budget.alu => broken.push(format!(
                        "{name} takes {:.1} ALU instructions per 64 bytes where it reads {width} at once, of {} allowed",
                        hot.per_64(hot.alu),
                        budget.alu
                    )),
                    Some(_) => {}
                }
            }
        }
        broken
    }
}

impl std::fmt::Display for Built {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { assembler, chip, kernel, registers, spilled, .. } = self;
        write!(out, "{assembler:<8} sm_{chip:<4} {kernel:<25} {registers:>9} {spilled:>8} |")?;
        for (hot, lead) in [(&self.by_16, 11), (&self.by_8, 10)] {
            let Some(hot) = hot else { continue };
            write!(out, "{:>lead$.1}", hot.per_64(hot.alu))?;
            for count in [hot.imad, hot.wide, hot.memory, hot.other] {
                write!(out, " {:>5.1}", hot.per_64(count))?;
            }
            write!(out, " |")?;
        }
        Ok(())
    }
}

fn assemble(
    ctx: &Ctx,
    assembler: &Path,
    disassembler: &Path,
    version: &'static str,
    chip: u32,
    module: &str,
) -> Result<Vec<Built>> {
    let ptx = ctx.root.join("kernels/ptx").join(format!("{module}.ptx"));
    let cubin = tools::wheels(ctx).join("out.cubin");
    let mut ptxas = ctx.command(assembler);
    ptxas.args(["-v", &format!("-arch=sm_{chip}")]).arg(&ptx).arg("-o").arg(&cubin);
    let said = capture_both(&mut ptxas).with_context(|| format!("{module}.ptx does not assemble for sm_{chip}"))?;
    let mut built = resources(&said, version, chip)?;
    let kernels = std::fs::read_to_string(&ptx)?.matches(".visible .entry ").count();
    if built.len() != kernels {
        bail!("ptxas {version} told the resources of {} kernels of {kernels} in {module}.ptx", built.len());
    }
    if chip >= COUNTED[0] {
        let listing = capture_both(ctx.command(disassembler).arg("-c").arg(&cubin))?;
        for kernel in &mut built {
            let loops = sass::innermost_loops(&listing, &kernel.kernel);
            kernel.by_16 = sass::hot(&loops, Width::Sixteen);
            kernel.by_8 = sass::hot(&loops, Width::Eight);
        }
    }
    Ok(built)
}

/// What `ptxas -v` says of each kernel.
fn resources(said: &str, assembler: &'static str, chip: u32) -> Result<Vec<Built>> {
    let before =
        |line: &str, what: &str| -> Option<u32> { line.split(what).next()?.split_whitespace().last()?.parse().ok() };
    let mut built: Vec<Built> = Vec::new();
    for line in said.lines() {
        if let Some(name) = line.split("Compiling entry function '").nth(1).and_then(|rest| rest.split('\'').next()) {
            let kernel = name.to_owned();
            built.push(Built { assembler, chip, kernel, registers: 0, spilled: 0, by_16: None, by_8: None });
        }
        let Some(kernel) = built.last_mut() else { continue };
        if line.contains(" bytes spill stores") {
            for what in [" bytes stack frame", " bytes spill stores", " bytes spill loads"] {
                kernel.spilled += before(line, what).with_context(|| format!("ptxas said: {line}"))?;
            }
        }
        if line.contains(" registers") {
            kernel.registers = before(line, " registers").with_context(|| format!("ptxas said: {line}"))?;
        }
    }
    match built.iter().find(|kernel| kernel.registers == 0) {
        Some(kernel) => bail!("ptxas {assembler} did not tell the registers of {}", kernel.kernel),
        None => Ok(built),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};
    use std::path::PathBuf;

    fn kernels() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels")
    }

    /// Needs no compiler: what the PTX says of its sources is compared with the sources that are here.
    #[test]
    fn the_ptx_was_made_from_these_sources() -> Result<()> {
        for module in MODULES {
            let ptx = std::fs::read_to_string(kernels().join("ptx").join(format!("{module}.ptx")))?;
            let sources: Vec<(&str, &str)> = ptx
                .lines()
                .filter_map(|line| line.strip_prefix("// source: kernels/")?.split_once(" sha256:"))
                .collect();
            assert!(sources.iter().any(|(name, _)| *name == format!("{module}.cu")), "{module}: {sources:?}");
            for (name, digest) in &sources {
                let text = std::fs::read(kernels().join(name))?;
                let found: String = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(*digest, found, "kernels/{name} changed after {module}.ptx was made: run kernels/build.py");
                for included in String::from_utf8(text)?.lines().filter_map(|line| line.strip_prefix("#include \"")) {
                    // What lies in a folder is for the CPU only.
                    let included = included.trim_end_matches('"');
                    assert!(
                        included.contains('/') || sources.iter().any(|(name, _)| *name == included),
                        "{name} includes {included}, of which {module}.ptx says nothing: run kernels/build.py"
                    );
                }
            }
        }
        Ok(())
    }

    #[test]
    fn every_source_file_has_its_ptx() -> Result<()> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(kernels())? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "cu") {
                found.push(path.file_stem().unwrap_or_default().to_string_lossy().into_owned());
            }
        }
        found.sort();
        assert_eq!(found, MODULES);
        Ok(())
    }

    #[test]
    fn resources_are_read_and_spills_refused() -> Result<()> {
        let said = "ptxas info    : Compiling entry function 'vram_nh_tiles' for 'sm_90'\n\
                    ptxas info    : Function properties for vram_nh_tiles\n\
                    \x20   16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n\
                    ptxas info    : Used 65 registers, used 0 barriers, 376 bytes cmem[0]\n";
        let built = resources(said, "13.5.37", 120)?;
        assert_eq!((built[0].registers, built[0].spilled), (65, 28));
        assert_eq!(built[0].judge().len(), 2, "{:?}", built[0].judge());
        Ok(())
    }
}
