//! Every section on an emulated GPU: it runs, it says so, and it claims nothing about hardware.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::path::Path;
use std::process::{Command, Output};

use cuda_emulator::{Fault, Plan};
use serde_json::Value;

fn command(out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vram-gpu-check"));
    command.arg("--out").arg(out).arg("--disk").arg(out).env("CUDA_MPS_PIPE_DIRECTORY", "/nowhere");
    command
}

fn check(out: &Path, arguments: &[&str]) -> Output {
    command(out).args(arguments).output().unwrap()
}

fn report(out: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(out.join("gpu-check.json")).unwrap()).unwrap()
}

/// Units of what takes time: nothing in them may have a value here.
const OF_TIME: [&str; 5] = ["s", "ms", "TB/s", "GB/s", "%"];

#[test]
fn every_section_runs_on_an_emulated_gpu_and_claims_no_speed() {
    let out = tempfile::tempdir().unwrap();
    let library = cuda_emulator::library();
    let output = check(out.path(), &["--small", "--library", library.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report = report(out.path());
    assert_eq!(report["emulated"], true);
    assert_eq!(report["device"]["name"], "Emulated GPU 0");
    let sections = report["sections"].as_array().unwrap();
    assert_eq!(sections.len(), 7);
    let mut figures = 0;
    for section in sections {
        assert_eq!(section["status"], "ok", "{section}");
        for figure in section["figures"].as_array().unwrap() {
            let of_time = OF_TIME.contains(&figure["unit"].as_str().unwrap());
            assert_eq!(figure["value"].is_null(), of_time, "{figure}");
            assert_eq!(figure["reason"].is_string(), of_time, "{figure}");
            figures += 1;
        }
    }
    assert!(figures > 40, "{figures}");
    // Each kind of memory could be had, and is told from the others.
    let facts = sections.iter().find(|section| section["name"] == "facts").unwrap();
    let told = facts["tables"].as_array().unwrap().last().unwrap();
    let rows = told["rows"].as_array().unwrap();
    let said: std::collections::BTreeSet<String> =
        rows.iter().map(|row| format!("{:?}", &row.as_array().unwrap()[1..])).collect();
    assert_eq!((rows.len(), said.len()), (5, 5), "{told}");
    let writes = sections.iter().find(|section| section["name"] == "writes").unwrap();
    for row in writes["tables"][0]["rows"].as_array().unwrap() {
        assert_eq!(row[2], "1", "the mapping is for reading only: {row}");
        assert_eq!((&row[6], row[5].as_str().unwrap().starts_with("700 ")), (&Value::from("yes"), true), "{row}");
        // Whether a byte changed only the exporter can say.
        assert_eq!(row[7], if row[1] == "imported" { "no" } else { "not known" }, "{row}");
    }
    for row in writes["tables"][1]["rows"].as_array().unwrap() {
        assert_eq!((&row[6], &row[7]), (&Value::from("no"), &Value::from("yes")), "both ways are open: {row}");
    }
    let markdown = std::fs::read_to_string(out.path().join("gpu-check.md")).unwrap();
    assert!(markdown.starts_with("# GPU check on an EMULATED GPU"), "{markdown}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("EMULATED GPU"));
}

#[test]
fn a_machine_without_a_driver_is_told_why_nothing_ran() {
    let out = tempfile::tempdir().unwrap();
    let output = check(out.path(), &["--only", "facts,writes", "--library", "/nowhere/libcuda.so.1"]);
    assert!(!output.status.success());
    let report = report(out.path());
    assert!(report["emulated"].is_null() && report["device"].is_null());
    for section in report["sections"].as_array().unwrap() {
        assert_eq!((&section["status"], section["figures"].as_array().unwrap().len()), (&Value::from("failed"), 0));
        assert!(section["error"].as_str().unwrap().contains("no NVIDIA driver library was found"), "{section}");
    }
}

/// Compiling works, the first launch kills the context.
#[test]
fn a_section_that_fails_keeps_what_it_said_and_stops_no_other() {
    let out = tempfile::tempdir().unwrap();
    let plan = Plan::default().fault(Fault::fail_once("cuLaunchKernel", 1, 719));
    let library = cuda_emulator::library();
    let mut command = command(out.path());
    command.args(["--small", "--only", "facts,kernels,writes", "--library"]).arg(library);
    let output = command.env("CUDA_EMULATOR_PLAN", serde_json::to_string(&plan).unwrap()).output().unwrap();
    assert!(!output.status.success());
    let report = report(out.path());
    let status = |index: usize| report["sections"][index]["status"].as_str().unwrap();
    assert_eq!((status(0), status(1), status(2)), ("ok", "failed", "ok"), "{report:#}");
    let kernels = &report["sections"][1];
    assert!(kernels["error"].as_str().unwrap().contains("719"), "{kernels}");
    assert_eq!(kernels["figures"].as_array().unwrap().len(), 3, "the times of compiling");
}

/// A refused write ends the work of every client of MPS, so where its door is there, that has to be asked for.
#[test]
fn nothing_is_written_where_mps_is_unless_that_is_asked_for() {
    let (out, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let _door = std::os::unix::net::UnixListener::bind(folder.path().join("control")).unwrap();
    let library = cuda_emulator::library();
    for asked in [false, true] {
        let mut command = command(out.path());
        command.args(["--small", "--only", "writes", "--library"]).arg(&library);
        command.args(asked.then_some("--writes-under-mps")).env("CUDA_MPS_PIPE_DIRECTORY", folder.path());
        assert_eq!(command.output().unwrap().status.success(), asked);
        let section = &report(out.path())["sections"][0];
        let tried = section["tables"].as_array().is_some_and(|tables| !tables.is_empty());
        assert_eq!((section["status"] == "ok", tried), (asked, asked), "{section}");
        if !asked {
            let why = section["error"].as_str().unwrap();
            assert!(why.contains("MPS") && why.contains("--writes-under-mps"), "{why}");
        }
    }
}

#[test]
fn without_time_left_a_section_is_skipped_and_says_so() {
    let out = tempfile::tempdir().unwrap();
    let library = cuda_emulator::library();
    let arguments = ["--small", "--budget", "0", "--only", "facts", "--library", library.to_str().unwrap()];
    assert!(!check(out.path(), &arguments).status.success(), "what did not run is no success");
    let section = &report(out.path())["sections"][0];
    assert_eq!(section["status"], "skipped");
    assert!(section["error"].as_str().unwrap().contains("--budget"));
}
