//! Each section in a process of its own, one after the other, in the time that is left.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::Cli;
use crate::report::{Report, Section, Status};
use crate::sections::{ALL, Plan};
use crate::sink::Line;

/// With less than this left, a section is not begun.
const LEAST: Duration = Duration::from_secs(5);

/// This program again, with the arguments that a child shares with its parent.
pub(crate) fn again(cli: &Cli) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("this program's own path is not known")?);
    command.arg("--device").arg(cli.device.to_string()).arg("--disk").arg(&cli.disk);
    if let Some(library) = &cli.library {
        command.arg("--library").arg(library);
    }
    if cli.small {
        command.arg("--small");
    }
    if cli.writes_under_mps {
        command.arg("--writes-under-mps");
    }
    command.stdin(Stdio::null());
    Ok(command)
}

/// Runs the sections. Says whether all went well.
pub(crate) fn run(cli: &Cli) -> Result<bool> {
    if let Some(name) = cli.only.iter().find(|name| ALL.iter().all(|plan| plan.name != name.as_str())) {
        let names: Vec<_> = ALL.iter().map(|plan| plan.name).collect();
        bail!("there is no section `{name}`; the sections are {}", names.join(", "));
    }
    let out = cli.out();
    std::fs::create_dir_all(&out).with_context(|| format!("{} cannot be made", out.display()))?;
    let (began, budget) = (Instant::now(), Duration::from_secs(cli.budget));
    let mut report = Report {
        tool: "vram-gpu-check",
        version: env!("CARGO_PKG_VERSION"),
        started: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        emulated: None,
        device: None,
        small: cli.small,
        sections: Vec::new(),
    };
    for plan in ALL.iter().filter(|plan| cli.only.is_empty() || cli.only.iter().any(|name| name == plan.name)) {
        let left = budget.saturating_sub(began.elapsed());
        let mut section = one(cli, plan, left, &mut report)?;
        section.figures.iter_mut().for_each(|figure| figure.judge(report.card()));
        eprintln!("{}: {:?} in {:.1} s", plan.title, section.status, section.seconds);
        report.sections.push(section);
        report.save(&out)?;
    }
    println!("{}", report.shown());
    println!("written: {}/gpu-check.json and gpu-check.md", out.display());
    Ok(report.good())
}

fn one(cli: &Cli, plan: &Plan, left: Duration, report: &mut Report) -> Result<Section> {
    let mut section = Section {
        name: plan.name,
        title: plan.title,
        status: Status::Skipped,
        seconds: 0.0,
        error: None,
        figures: Vec::new(),
        tables: Vec::new(),
    };
    if left < LEAST {
        section.error = Some("not run: the sections before it took all the time that --budget gives".to_owned());
        return Ok(section);
    }
    let began = Instant::now();
    let limit = left.min(Duration::from_secs(plan.seconds));
    let mut command = again(cli)?;
    command.args(["--section", plan.name]).stdout(Stdio::piped()).process_group(0);
    let mut child = command.spawn().context("a section's process cannot be started")?;
    let lines = read(&mut child);
    let ended = listen(&lines, began + limit, &mut section, report);
    stop(&mut child, ended != Status::TimedOut);
    section.status = ended;
    section.seconds = began.elapsed().as_secs_f64();
    if ended == Status::TimedOut {
        section.error = Some(format!("stopped after {} s; what it said until then is here", limit.as_secs()));
    } else if ended == Status::Failed && section.error.is_none() {
        section.error = Some("its process ended before it was done".to_owned());
    }
    Ok(section)
}

/// The child's lines, from a thread that ends with its output.
fn read(child: &mut Child) -> Receiver<String> {
    let (to, lines) = channel();
    if let Some(stdout) = child.stdout.take() {
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if to.send(line).is_err() {
                    return;
                }
            }
        });
    }
    lines
}

fn listen(lines: &Receiver<String>, until: Instant, section: &mut Section, report: &mut Report) -> Status {
    loop {
        let line = match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => return Status::TimedOut,
            Err(RecvTimeoutError::Disconnected) => return Status::Failed,
        };
        match serde_json::from_str(&line) {
            Ok(Line::Device { facts, emulated }) => {
                report.device = Some(facts);
                report.emulated = Some(emulated);
            }
            Ok(Line::Figure(figure)) => section.figures.push(figure),
            Ok(Line::Table(table)) => match section.tables.iter_mut().find(|known| known.title == table.title) {
                Some(known) => known.rows.extend(table.rows),
                None => section.tables.push(table),
            },
            Ok(Line::End { error: None }) => return Status::Ok,
            Ok(Line::End { error }) => {
                section.error = error;
                return Status::Failed;
            }
            Err(_) => eprintln!("{line}"),
        }
    }
}

/// Waits for a process that said its last word, for a while; then, or at once, ends it and those that it started.
fn stop(child: &mut Child, finished: bool) {
    let patience = if finished { Duration::from_secs(10) } else { Duration::ZERO };
    let until = Instant::now() + patience;
    while Instant::now() < until {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Figure;

    fn empty() -> (Section, Report) {
        let section = Section {
            name: "a",
            title: "a",
            status: Status::Skipped,
            seconds: 0.0,
            error: None,
            figures: Vec::new(),
            tables: Vec::new(),
        };
        let (started, sections) = (String::new(), Vec::new());
        (section, Report { tool: "", version: "", started, emulated: None, device: None, small: true, sections })
    }

    #[test]
    fn what_a_section_said_before_it_hung_or_died_is_kept() {
        let line = serde_json::to_string(&Line::Figure(Figure::of("a", "GB/s", 1.5, None))).unwrap();
        for hangs in [true, false] {
            let (mut section, mut report) = empty();
            let (to, lines) = channel();
            to.send(line.clone()).unwrap();
            to.send("not a line of ours".to_owned()).unwrap();
            let held = hangs.then_some(to);
            let until = Instant::now() + Duration::from_millis(100);
            let ended = listen(&lines, until, &mut section, &mut report);
            assert_eq!(ended, if hangs { Status::TimedOut } else { Status::Failed });
            assert_eq!(section.figures.len(), 1);
            drop(held);
        }
    }

    #[test]
    fn a_process_that_does_not_end_is_ended_with_its_children() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & echo $!; sleep 1000"]).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().unwrap();
        let grandchild = read(&mut child).recv_timeout(Duration::from_secs(10)).unwrap();
        stop(&mut child, false);
        let gone =
            || std::fs::read_to_string(format!("/proc/{grandchild}/stat")).map_or(true, |stat| stat.contains(") Z"));
        let until = Instant::now() + Duration::from_secs(10);
        while !gone() {
            assert!(Instant::now() < until, "{grandchild} still runs");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
