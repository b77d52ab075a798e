//! `vram audit keygen`: the key that signs the log.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use audit_logging::Disk;
use audit_logging::publish;
use audit_logging::tlog::note::{KeyError, SigningKey};
use serde::Serialize;

use crate::cli::{AuditKeygen, Global};
use crate::exit::Failure;
use crate::output::{Out, Style, hex, printable};
use crate::state;

#[derive(Serialize)]
struct Made<'a> {
    origin: &'a str,
    vkey: String,
    key_file: &'a Path,
    rotates: bool,
}

/// Makes the key, or the next one. Nothing that exists is overwritten.
pub(super) fn run(options: &AuditKeygen, global: &Global, out: &Out) -> Result<(), Failure> {
    if global.key_file.is_some() {
        return Err(Failure::usage("--key-file is about the seal key; the log's key goes where --audit-key says"));
    }
    let path = state::audit_key_path(global)?;
    let (origin, target) = if options.rotate {
        let current = publish::read_signer(&Disk, &path).map_err(cannot)?;
        (current.verifier().name().to_owned(), publish::next_file(&path))
    } else {
        (options.origin.clone().map_or_else(publish::default_origin, Ok).map_err(cannot)?, path)
    };
    let key = SigningKey::generate(&origin).map_err(|error| match error {
        KeyError::Name { .. } => Failure::usage(format!("--origin: {error}")),
        error => cannot(error),
    })?;
    if origin.contains(['"', '\\']) {
        return Err(Failure::usage("--origin: the log's name stands in its records; leave out \" and \\"));
    }
    let vkey = key.verifier().to_string();
    // What others are given is there before the log can be signed with it.
    if options.rotate && target.exists() {
        // One that can be used is only waited for; write_new says so.
        publish::read_signer(&Disk, &target).map_err(|error| {
            Failure::new("key", format!("a next key is there and cannot be used: {error}; or remove it and ask again"))
        })?;
    }
    let public = publish::verifier_file(&target);
    if options.rotate && !target.exists() {
        // Of a rotation that ended half-way.
        let _ = std::fs::remove_file(&public);
    }
    write_new(&public, format!("{vkey}\n").as_bytes(), 0o644, options.rotate)?;
    write_new(&target, format!("{}\n", *key.to_text()).as_bytes(), 0o600, options.rotate)?;
    out.line(format_args!("{vkey}"));
    let shown = printable(&target.to_string_lossy());
    let ok = out.styled(Style::Green, "ok");
    if options.rotate {
        out.line(format_args!(
            "{ok} the next key is in {shown}; the log changes to it and records that when it is next written to"
        ));
    } else {
        out.line(format_args!(
            "{ok} the key is in {shown}, readable by you alone; the log is signed from the next run on"
        ));
    }
    out.line(
        "Give the line above to whoever verifies the log, by a way that the log's machine does not control: --vkey.",
    );
    out.object(&Made { origin: &origin, vkey, key_file: &target, rotates: options.rotate });
    Ok(())
}

fn cannot(error: impl std::fmt::Display) -> Failure {
    Failure::new("key", error.to_string())
}

/// Writes a file that is not there yet: complete and on disk under a name of its own first, then linked to its place.
fn write_new(path: &Path, bytes: &[u8], mode: u32, is_next: bool) -> Result<(), Failure> {
    let written = || -> io::Result<()> {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let draft = draft_beside(path)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft)?;
        let linked =
            file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| std::fs::hard_link(&draft, path));
        std::fs::remove_file(&draft)?;
        linked?;
        File::open(directory)?.sync_all()
    };
    written().map_err(|error| {
        let shown = path.display();
        let remedy = match error.kind() {
            io::ErrorKind::AlreadyExists if is_next => {
                "the rotation before was not carried out yet: let the log run once"
            }
            io::ErrorKind::AlreadyExists => {
                "nothing was changed; --rotate makes the next key of this log, and --audit-key names another place"
            }
            _ => "check the path and its permissions, or name another with --audit-key",
        };
        Failure::new("key", format!("{shown} cannot be made: {error}; {remedy}"))
    })
}

fn draft_beside(path: &Path) -> io::Result<PathBuf> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(path.with_file_name(format!(".{name}.{}", hex(&random))))
}
