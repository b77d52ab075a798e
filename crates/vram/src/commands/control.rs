//! Commands that talk to a running daemon over its control socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixStream;

use vram_residency::approval::Algorithm;

use super::table;
use crate::cli::{Control, Socket};
use crate::exit::{Exit, Failure};
use crate::output::{Out, Style, printable};
use crate::serve;

/// How long an answer may take.
const LOOK_TIME: Duration = Duration::from_secs(30);
const WORK_TIME: Duration = Duration::from_secs(24 * 3600);
/// Largest answer that is read.
const ANSWER_BYTES: usize = 64 << 20;

/// Does what was asked.
pub(super) fn run(control: &Control, out: &Out) -> Result<(), Failure> {
    match control {
        Control::Status { shard, watch, socket } => {
            let daemon = Daemon::new(socket)?;
            let path = shard.map_or_else(|| "/v1/status".to_owned(), |shard| format!("/v1/shards/{shard}"));
            loop {
                let answer = daemon.ask(Method::GET, &path, None)?;
                if *watch {
                    // From the top of an empty screen.
                    out.line("\x1b[H\x1b[2J");
                }
                show(&answer, shard.is_some(), out);
                if !*watch || out.is_closed() {
                    return judge(&answer);
                }
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        Control::Verify { shard, socket } => verify(&Daemon::new(socket)?, shard.map(|shard| shard.to_string()), out),
        Control::Load { files, format, approval, socket } => {
            let files = files.iter().map(|file| absolute(file)).collect::<Result<Vec<_>, _>>()?;
            let body = json!({
                "files": files,
                "format": format.map(|format| format.name()),
                "manifest": approval.manifest.as_deref().map(absolute).transpose()?,
                "manifest_key": approval.manifest_key.as_deref().map(absolute).transpose()?,
                "manifest_hash": approval.manifest_hash.map(Algorithm::as_str),
            });
            let answer = Daemon::new(socket)?.ask(Method::POST, "/v1/shards", Some(&body))?;
            out.object(&answer);
            for shard in answer.as_array().into_iter().flatten() {
                table::shard_line("loaded", shard, out);
            }
            Ok(())
        }
        Control::Repair { shard, socket } => {
            let answer = Daemon::new(socket)?.ask(Method::POST, &format!("/v1/shards/{shard}/repair"), None)?;
            out.object(&answer);
            let blocks = answer.get("repaired").and_then(Value::as_array).map_or(0, Vec::len);
            out.line(format_args!("{} {shard}: {}", ok(out), crate::jobs::count(blocks, "block") + " repaired"));
            Ok(())
        }
        Control::Release { shard, force, socket } => {
            let (path, body) = (format!("/v1/shards/{shard}"), json!({ "force": force }));
            let answer = Daemon::new(socket)?.ask(Method::DELETE, &path, Some(&body))?;
            out.object(&answer);
            table::shard_line("released", &answer, out);
            Ok(())
        }
        Control::Unseal { shard, reason, force, socket } => {
            let (path, body) = (format!("/v1/shards/{shard}/unseal"), json!({ "reason": reason, "force": force }));
            let answer = Daemon::new(socket)?.ask(Method::POST, &path, Some(&body))?;
            out.object(&answer);
            out.line(format_args!("{} {shard} is unsealed; vram reseal {shard} seals it again", ok(out)));
            Ok(())
        }
        Control::Reseal { shard, file, socket } => {
            let file = file.as_deref().map(absolute).transpose()?;
            let path = format!("/v1/shards/{shard}/reseal");
            let answer = Daemon::new(socket)?.ask(Method::POST, &path, Some(&json!({ "file": file })))?;
            out.object(&answer);
            table::shard_line("resealed", &answer, out);
            Ok(())
        }
        Control::Drill { shard, byte, bit, socket } => {
            let path = format!("/v1/shards/{shard}/drill");
            let answer = Daemon::new(socket)?.ask(Method::POST, &path, Some(&json!({ "byte": byte, "bit": bit })))?;
            out.object(&answer);
            let figure = |name: &str| answer.get(name).and_then(Value::as_u64).unwrap_or(0);
            out.line(format_args!(
                "bit {} of byte {} of {shard} is flipped, in block {}; now the daemon has to find it",
                figure("bit"),
                figure("byte"),
                figure("block")
            ));
            Ok(())
        }
    }
}

fn ok(out: &Out) -> String {
    out.styled(Style::Green, "ok")
}

fn show(answer: &Value, is_one: bool, out: &Out) {
    out.object(answer);
    if is_one {
        table::shard(answer, out);
    } else {
        table::status(answer, out);
    }
}

/// Verifies one shard, or all in one sweep. One that cannot be verified is named, and the others are verified.
fn verify(daemon: &Daemon, one: Option<String>, out: &Out) -> Result<(), Failure> {
    let reports = match one {
        Some(shard) => match daemon.ask(Method::POST, &format!("/v1/shards/{shard}/verify"), None) {
            Err(failure) if failure.exit == Exit::Integrity => {
                vec![json!({ "shard_id": shard, "error": &failure, "integrity": true })]
            }
            answer => vec![answer?],
        },
        None => daemon.ask(Method::POST, "/v1/verify", None)?.as_array().cloned().unwrap_or_default(),
    };
    let mut worst: Option<Failure> = None;
    for report in &reports {
        let Some(failure) = told(report) else {
            table::shard_line("verified", report, out);
            continue;
        };
        let (word, style) = match failure.exit {
            Exit::Integrity => ("damaged", Style::Red),
            _ if failure.kind == "unsealed" => ("unsealed", Style::Yellow),
            _ => ("unverified", Style::Yellow),
        };
        let id = report.get("shard_id").and_then(Value::as_str).unwrap_or_default();
        let name = if failure.message.contains(id) { String::new() } else { format!("'{id}': ") };
        out.line(format_args!("{} {}{}", out.styled(style, word), printable(&name), printable(&failure.message)));
        // Damage is the worst news, and what could not be checked is worse than what is no seal's affair.
        let weight = |failure: &Failure| (failure.exit == Exit::Integrity, failure.kind != "unsealed");
        if worst.as_ref().is_none_or(|worst| weight(&failure) > weight(worst)) {
            worst = Some(failure);
        }
    }
    out.object(&reports);
    match worst {
        None => Ok(()),
        Some(failure) => Err(Failure { in_report: true, ..failure }),
    }
}

/// Why a shard was not found as sealed, where a report says so.
fn told(report: &Value) -> Option<Failure> {
    let error = report.get("error")?;
    let said = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or_default();
    let message = said("message").to_owned();
    Some(match (report.get("integrity").and_then(Value::as_bool), said("kind")) {
        (Some(true), _) => Failure::integrity("verification", message),
        (_, "unsealed") => Failure::new("unsealed", message),
        (_, "busy") => Failure::new("busy", message),
        _ => Failure::new("daemon", message),
    })
}

/// Exit 3 where a shard is damaged.
fn judge(answer: &Value) -> Result<(), Failure> {
    let one = std::slice::from_ref(answer);
    let shards = answer.get("shards").and_then(Value::as_array).map_or(one, Vec::as_slice);
    let state = |shard: &Value| shard.get("state").and_then(Value::as_str).unwrap_or_default().to_owned();
    let states: Vec<String> = shards.iter().map(state).filter(|state| is_damaged(state)).collect();
    if states.is_empty() {
        return Ok(());
    }
    let devices = answer.get("devices").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    // Of what is damaged, the devices that are not trusted any more.
    let given_up = devices.iter().find(|device| {
        let name = device.get("name");
        let holds = |shard: &Value| shard.get("device") == name && is_damaged(&state(shard));
        device.get("quarantined").is_some_and(|reason| !reason.is_null()) && shards.iter().any(holds)
    });
    let remedy = if let Some(device) = given_up {
        let name = device.get("name").and_then(Value::as_str).unwrap_or_default();
        &*format!("{name} is quarantined: restart the daemon, and replace the device if it happens again")
    } else if states.iter().any(|state| state == "FAILED") {
        "what FAILED is mended by vram release and vram load from a good file"
    } else {
        "vram repair SHARD mends it"
    };
    let message = format!("{} damaged; vram audit show tells what happened; {remedy}", are(states.len()));
    Err(Failure { in_report: true, ..Failure::integrity("damaged", message) })
}

fn is_damaged(state: &str) -> bool {
    matches!(state, "SUSPECT" | "QUARANTINED" | "REPAIRING" | "FAILED")
}

fn are(count: usize) -> String {
    if count == 1 { "1 shard is".to_owned() } else { format!("{count} shards are") }
}

/// The daemon works elsewhere than whoever asks it.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| Failure::new("file", format!("{} is no path: {error}", path.display())))
}

/// A running daemon.
pub(super) struct Daemon {
    socket: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Daemon {
    pub(super) fn new(socket: &Socket) -> Result<Self, Failure> {
        let socket = match &socket.socket {
            Some(path) => path.clone(),
            None => serve::default_path()?,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let cannot = |error: std::io::Error| Failure::new("system", format!("no connection can be made: {error}"));
        Ok(Self { socket, runtime: runtime.map_err(cannot)? })
    }

    /// Asks, and returns what is answered.
    fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let answer = self.ask_bytes(method, path, body)?;
        serde_json::from_slice(&answer).map_err(|_| self.odd("something that is no JSON"))
    }

    /// The same, byte for byte.
    pub(super) fn ask_bytes(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Bytes, Failure> {
        let text = body.map(|body| serde_json::to_vec(body).unwrap_or_default());
        // Looking is quick; what is to be done may take as long as it takes.
        let limit = if method == Method::GET { LOOK_TIME } else { WORK_TIME };
        let (status, answer) = self.runtime.block_on(async {
            let answer = tokio::time::timeout(limit, self.send(method, path, text)).await;
            answer.unwrap_or_else(|_| Err(self.silent(limit)))
        })?;
        if status.is_success() {
            return Ok(answer);
        }
        let value: Value = serde_json::from_slice(&answer).map_err(|_| self.odd("something that is no JSON"))?;
        let said = |name: &str| value.get("error").and_then(|error| error.get(name)).and_then(Value::as_str);
        let message = said("message").ok_or_else(|| self.odd(status.as_str()))?.to_owned();
        let integrity = value.get("integrity").and_then(Value::as_bool).unwrap_or(false);
        Err(match said("kind") {
            Some("approval") => Failure::integrity("approval", message),
            Some("unexpected-digest") if integrity => Failure::integrity("unexpected-digest", message),
            _ if integrity => Failure::integrity("verification", message),
            Some("usage") => Failure::usage(message),
            Some("leased") => Failure::new("leased", message),
            Some("forbidden") => Failure::new("forbidden", message),
            Some("unknown-shard") => Failure::new("unknown-shard", message),
            Some("no-shard") => Failure::new("no-shard", message),
            _ => Failure::new("daemon", message),
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<(hyper::StatusCode, Bytes), Failure> {
        let shown = self.socket.display();
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| {
            let message = match error.kind() {
                std::io::ErrorKind::PermissionDenied => {
                    format!("the daemon at {shown} is another user's; ask as that user or as root")
                }
                _ => format!("no daemon answers at {shown}: {error}; start one with vram serve, or name its --socket"),
            };
            Failure::new("daemon", message)
        })?;
        let lost = |error: hyper::Error| Failure::new("daemon", format!("the daemon at {shown} hung up: {error}"));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header("host", "vram");
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let request = request.body(Full::new(Bytes::from(body.unwrap_or_default())));
        let request = request.map_err(|error| Failure::usage(format!("this cannot be asked: {error}")))?;
        let answer = sender.send_request(request).await.map_err(lost)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await;
        Ok((status, body.map_err(|_| self.odd("too much"))?.to_bytes()))
    }

    fn silent(&self, limit: Duration) -> Failure {
        let shown = self.socket.display();
        let message =
            format!("the daemon at {shown} does not answer within {limit:?}; see whether its process is stopped");
        Failure::new("daemon", message)
    }

    fn odd(&self, what: &str) -> Failure {
        Failure::new("daemon", format!("what listens at {} answers {what}; is it vram?", self.socket.display()))
    }
}
