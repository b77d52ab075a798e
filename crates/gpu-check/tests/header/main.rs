//! What the CUDA device and the emulated driver take NVIDIA's `cuda.h` to say is what it says: a C++ compiler compares the
//! types of all functions, the layout of all structures and all numbers with the header itself, in several releases.
//!
//! Both were written by the same people, so a mistake about the driver would be in both, and no other test would find it.
//!
//! `VRAM_CUDA_HEADERS` names the folders with a `cuda.h` each, separated by `:`, the newest last. `cargo xtask kernels`
//! fetches them and runs this.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use cuda_emulator::declared;
use vram_residency::device::cuda_measure::{Statement, header_statement};

/// With it, the header declares older forms of its functions as well.
const OLDER_FORMS: &str = "-D__CUDA_API_VERSION_INTERNAL";

fn headers() -> Vec<PathBuf> {
    let named = std::env::var_os("VRAM_CUDA_HEADERS").unwrap_or_default();
    let found: Vec<PathBuf> = std::env::split_paths(&named).filter(|path| path.join("cuda.h").is_file()).collect();
    assert!(!found.is_empty(), "VRAM_CUDA_HEADERS names no folder with a cuda.h; cargo xtask kernels fetches some");
    found
}

fn compiler(include: &Path, define: Option<&str>) -> Command {
    let mut command = Command::new("g++");
    command.args(["-x", "c++", "-std=c++17", "-Wno-deprecated-declarations"]).args(define).arg("-I").arg(include);
    command
}

/// Every word of the header after the preprocessor, which replaces a function's name by the exported one.
fn words(include: &Path, define: Option<&str>) -> HashSet<String> {
    let output = compiler(include, define).args(["-E", "-P"]).arg(include.join("cuda.h")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut words: HashSet<String> =
        text.split(|c: char| !c.is_alphanumeric() && c != '_').map(str::to_owned).collect();
    // Structures and numbers that are macros; not functions, whose macros lead to other names.
    let raw = std::fs::read(include.join("cuda.h")).unwrap();
    let raw = String::from_utf8_lossy(&raw);
    let macros = raw.lines().filter_map(|line| line.trim().strip_prefix("#define ")?.split_whitespace().next());
    words.extend(macros.filter(|name| name.starts_with("CU")).map(str::to_owned));
    words
}

/// What is to be compared, by name.
#[derive(Default)]
struct Checks {
    functions: BTreeMap<&'static str, Vec<String>>,
    others: BTreeMap<&'static str, Vec<String>>,
}

impl Checks {
    fn function(&mut self, symbol: &'static str, arguments: &[String]) {
        let separator = if arguments.is_empty() { "" } else { ", " };
        let line = format!("FUNCTION({symbol}{separator}{})", arguments.join(", "));
        self.functions.entry(symbol).or_default().push(line);
    }

    fn number(&mut self, name: &'static str, value: i64) {
        self.others.entry(name).or_default().push(format!("NUMBER({name}, {value})"));
    }

    fn structure(&mut self, name: &'static str, (bytes, alignment): (usize, usize), fields: &[(&str, usize, usize)]) {
        let lines = self.others.entry(name).or_default();
        lines.push(format!("STRUCTURE({name}, {bytes}, {alignment})"));
        for (field, place, bytes) in fields {
            let (first, last) = field.split_once("..").unwrap_or((field, field));
            lines.push(format!("FIELD({name}, {first}, {last}, {place}, {bytes})"));
        }
    }

    fn of(statement: &Statement) -> Self {
        let mut checks = Self::default();
        statement.functions.iter().for_each(|function| checks.function(function.symbol, &function.arguments));
        statement.numbers.iter().for_each(|(name, value)| checks.number(name, *value));
        for found in &statement.structures {
            checks.structure(found.name, (found.bytes, found.alignment), &found.fields);
        }
        checks
    }

    fn of_emulator() -> Self {
        let mut checks = Self::default();
        declared::calls().iter().for_each(|call| checks.function(call.symbol, &call.arguments));
        declared::results().iter().for_each(|(name, value)| checks.number(name, *value));
        for (name, bytes, alignment, fields) in declared::structures() {
            checks.structure(name, (bytes, alignment), &fields);
        }
        checks
    }

    /// Compiles what a header knows. Returns the names that it does not know, and those that only its older forms have.
    fn compile(&self, include: &Path) -> (Vec<&'static str>, Vec<&'static str>) {
        let (now, older) = (words(include, None), words(include, Some(OLDER_FORMS)));
        let (mut known, mut only_older, mut unknown) = (String::new(), String::new(), Vec::new());
        let mut old = Vec::new();
        for (name, lines) in self.functions.iter().chain(&self.others) {
            let to = if now.contains(*name) {
                &mut known
            } else if older.contains(*name) {
                old.push(*name);
                &mut only_older
            } else {
                unknown.push(*name);
                continue;
            };
            lines.iter().for_each(|line| writeln!(to, "{line}").unwrap());
        }
        assert_eq!(compile(include, None, &known), "", "{}", include.display());
        assert_eq!(compile(include, Some(OLDER_FORMS), &only_older), "", "{}", include.display());
        (unknown, old)
    }
}

/// What the compiler says of these lines: nothing where all is well.
fn compile(include: &Path, define: Option<&str>, lines: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("check.cpp");
    std::fs::write(&file, format!("#include \"check.hpp\"\n{lines}")).unwrap();
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/header");
    let mut command = compiler(include, define);
    let output = command.arg("-fsyntax-only").arg("-I").arg(own).arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() || !said.is_empty(), "{}", output.status);
    if output.status.success() { String::new() } else { said }
}

#[test]
#[ignore = "needs NVIDIA's headers: cargo xtask kernels"]
fn functions_structures_and_numbers_are_those_of_the_header() {
    let headers = headers();
    let newest = headers.last().unwrap();
    for include in &headers {
        for (who, checks) in [("the device", Checks::of(&header_statement())), ("the emulator", Checks::of_emulator())]
        {
            let (unknown, old) = checks.compile(include);
            let count = checks.functions.len() + checks.others.len() - unknown.len();
            println!(
                "{}: {count} names of {who}; not there: {unknown:?}; in its older forms: {old:?}",
                include.display()
            );
            // An old header need not know what came later; the newest knows all, and no name is made up.
            assert!(include != newest || unknown.is_empty(), "{who} names what no header has: {unknown:?}");
            assert!(unknown.iter().all(|name| !name.starts_with("cu")), "the oldest driver lacks {unknown:?}");
        }
    }
}

/// A check that finds nothing wrong must be one that could.
#[test]
#[ignore = "needs NVIDIA's headers: cargo xtask kernels"]
fn a_wrong_type_number_or_layout_is_found() {
    let include = headers().pop().unwrap();
    for wrong in [
        "FUNCTION(cuMemUnmap, Int<8, false>, Int<4, false>)",
        "FUNCTION(cuMemUnmap, Int<8, false>)",
        "FUNCTION(cuMemUnmap, Int<8, true>, Int<8, false>)",
        "FUNCTION(cuMemCreate, Pointer<Int<8, false>>, Int<8, false>, Pointer<Structure<CUmemAllocationProp>>, Int<8, false>)",
        "FUNCTION(cuMemCreate, Pointer<Int<8, false>>, Int<8, false>, ConstPointer<Structure<CUmemLocation>>, Int<8, false>)",
        "FUNCTION(cuStreamSynchronize, Pointer<Pointer<Opaque>>)",
        "FUNCTION(cuEventSynchronize, Int<4, true>)",
        "NUMBER(CU_JIT_ERROR_LOG_BUFFER, 6)",
        "STRUCTURE(CUmemAllocationProp, 24, 8)",
        "FIELD(CUmemAllocationProp, location, location, 4, 8)",
        "FIELD(CUDA_MEMCPY3D, srcXInBytes, srcZ, 0, 32)",
    ] {
        assert_ne!(compile(&include, None, wrong), "", "{wrong} was taken");
    }
}

/// NVIDIA says of each result whether a process can go on after it. The device believes no context that cannot.
#[test]
#[ignore = "needs NVIDIA's headers: cargo xtask kernels"]
fn results_after_which_a_process_must_end_count_as_the_loss_of_the_gpu() {
    let text = std::fs::read(headers().pop().unwrap().join("cuda.h")).unwrap();
    let text = String::from_utf8_lossy(&text);
    let body = text.split("typedef enum cudaError_enum {").nth(1).unwrap().split("} CUresult;").next().unwrap();
    let sticky = header_statement().sticky;
    let mut found = 0;
    for entry in body.split("/**").skip(1) {
        let (comment, declared) = entry.split_once("*/").unwrap();
        let comment = comment.split_whitespace().filter(|word| *word != "*").collect::<Vec<_>>().join(" ");
        let ends =
            ["the process must be terminated", "context cannot be used"].iter().any(|says| comment.contains(says));
        let (name, number) = declared.split(',').next().unwrap().split_once('=').unwrap();
        let number: i32 = number.trim().parse().unwrap();
        if ends {
            found += 1;
            assert!(sticky.contains(&number), "{} is not taken as the loss of a GPU", name.trim());
        }
    }
    assert!(found >= 12, "only {found} comments say so: are they still written as they were?");
}
