//! Secrets and weights stay where they are: canaries planted in both never come out, however much is told.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use support::daemon::Daemon;
use support::{Home, safetensors};

/// Bytes that occur nowhere by chance.
fn canary(seed: u64, length: usize) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"canary").update(&seed.to_le_bytes());
    let mut bytes = vec![0; length];
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// What the bytes look like in the forms in which they could get out. Halves too: a part is too much.
fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = Vec::new();
    for part in [&secret[..16], &secret[secret.len() - 16..]] {
        let hex = |upper: bool| -> String {
            part.iter().map(|byte| if upper { format!("{byte:02X}") } else { format!("{byte:02x}") }).collect()
        };
        let list: Vec<_> = part.iter().map(u8::to_string).collect();
        forms.extend([part.to_vec(), hex(false).into_bytes(), hex(true).into_bytes()]);
        forms.extend([list.join(", ").into_bytes(), list.join(",").into_bytes()]);
        for phase in 0..3 {
            let whole = &part[phase..phase + 12];
            forms.push(base64(whole, b'+', b'/'));
            forms.push(base64(whole, b'-', b'_'));
        }
    }
    forms
}

/// Of a multiple of three bytes.
fn base64(bytes: &[u8], plus: u8, slash: u8) -> Vec<u8> {
    let digit = |value: u32| match value as u8 & 63 {
        value @ 0..26 => b'A' + value,
        value @ 26..52 => b'a' + value - 26,
        value @ 52..62 => b'0' + value - 52,
        62 => plus,
        _ => slash,
    };
    let group = |group: &[u8]| {
        let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        [18, 12, 6, 0].map(|shift| digit(bits >> shift))
    };
    bytes.chunks_exact(3).flat_map(group).collect()
}

fn contains(text: &[u8], form: &[u8]) -> bool {
    text.windows(form.len()).any(|window| window == form)
}

fn files_below(dir: &Path, found: &mut Vec<Vec<u8>>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, found);
            continue;
        }
        // Segments are made in full length; what was never written is zero.
        let mut bytes = fs::read(path).unwrap();
        bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
        found.push(bytes);
    }
}

#[test]
fn the_forms_are_what_they_should_be() {
    assert_eq!(base64(b"Man>?>", b'+', b'/'), b"TWFuPj8+");
    let secret = canary(1, 32);
    for form in forms(&secret) {
        let hidden = [b"before ".as_slice(), &form, b" after"].concat();
        assert!(contains(&hidden, &form));
    }
    assert!(contains(format!("{secret:?}").as_bytes(), &forms(&secret)[3]), "Debug of the bytes would be found");
}

#[test]
fn neither_key_nor_weights_come_out() {
    let home = Home::new();
    let (secret, weights) = (canary(1, 64), canary(2, 64));
    let key = home.file("own.key", &secret);
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    let mut model = safetensors(["canary.weight", "b"], 3000);
    let end = model.len();
    model[end - 100..end - 36].copy_from_slice(&weights);
    let middle = end / 2;
    model[middle..middle + 64].copy_from_slice(&weights);
    let model = home.file("model.safetensors", &model);
    let (model, key) = (model.to_str().unwrap(), key.to_str().unwrap());
    let wrong = format!("sha256:{}", "0".repeat(64));

    let mut told = Vec::new();
    let commands: [(&[&str], i32); 12] = [
        (&["seal", model], 0),
        (&["seal", model, "--json"], 0),
        (&["seal", model, "--format", "raw"], 0),
        (&["seal", model, "--expect", &wrong], 3),
        (&["seal", model, "--expect", &wrong, "--json"], 3),
        (&["seal", model, "--require-vram"], 1),
        (&["seal", model, "--capacity", "4KiB"], 1),
        (&["demo", "--size", "4"], 0),
        (&["audit", "show"], 0),
        (&["audit", "show", "--json"], 0),
        (&["audit", "verify"], 0),
        (&["doctor"], 0),
    ];
    for (arguments, code) in commands {
        let ran = home.run(arguments.iter().chain(&["-vv", "--key-file", key]));
        assert_eq!(ran.code, code, "{ran:?}");
        if arguments[0] == "seal" {
            assert!(ran.stderr.contains("DEBUG") || ran.stderr.contains("TRACE"), "nothing was told: {ran:?}");
        }
        told.extend([ran.stdout.into_bytes(), ran.stderr.into_bytes()]);
    }
    // The default key is as secret as one that was named.
    let ran = home.run(["seal", model, "-vv", "--json"]);
    told.extend([ran.stdout.into_bytes(), ran.stderr.into_bytes()]);
    let made = fs::read(home.state().join("seal.key")).unwrap();
    files_below(&home.audit(), &mut told);

    for (what, bytes) in [("the named key", &secret), ("the made key", &made), ("the weights", &weights)] {
        for form in forms(bytes) {
            let hit = told.iter().position(|text| contains(text, &form));
            assert_eq!(hit, None, "{what} came out as {}", String::from_utf8_lossy(&form));
        }
    }
}

#[test]
fn the_daemon_tells_neither_keys_nor_weights_nor_addresses() {
    let home = Home::new();
    let (secret, weights) = (canary(1, 64), canary(2, 64));
    let token: String = canary(3, 20).iter().map(|byte| format!("{byte:02x}")).collect();
    let key = home.file("own.key", &secret);
    let token_file = home.file("token", token.as_bytes());
    for file in [&key, &token_file] {
        fs::set_permissions(file, Permissions::from_mode(0o600)).unwrap();
    }
    let mut model = vec![3; 5000];
    model[100..164].copy_from_slice(&weights);
    let model = home.file("canary.bin", &model);
    let arguments =
        ["-vv", "--allow-drill", "--key-file", key.to_str().unwrap(), "--token-file", token_file.to_str().unwrap()];
    let arguments: Vec<&str> = arguments.into_iter().chain([model.to_str().unwrap()]).collect();
    let mut daemon = Daemon::start(&home, &arguments);
    let mut told = vec![daemon.ready.to_string().into_bytes()];
    let authorized = format!("Authorization: Bearer {token}\r\n");
    let verify = "/v1/shards/canary-bin/verify";
    told.push(daemon.http("POST", verify, &authorized).body.into_bytes());
    told.push(daemon.http("POST", verify, "Authorization: Bearer wrong\r\n").body.into_bytes());
    told.push(daemon.ask(&["drill", "canary-bin", "--byte", "110", "--bit", "1"]).stdout.into_bytes());
    daemon.until("it is found", |status| status["ready"] == false);
    for path in
        ["/healthz", "/readyz", "/metrics", "/v1/status", "/v1/shards", "/v1/shards/canary-bin", "/v1/openapi.json"]
    {
        let answer = daemon.get(path);
        told.extend([answer.head.into_bytes(), answer.body.into_bytes()]);
    }
    for command in [vec!["status"], vec!["verify", "canary-bin"], vec!["repair", "canary-bin"]] {
        let ran = daemon.ask(&command);
        told.extend([ran.stdout.into_bytes(), ran.stderr.into_bytes()]);
    }
    daemon.stop();
    let log = fs::read(home.path("stderr")).unwrap();
    assert!(contains(&log, b"verification failed"), "nothing was told");
    told.push(log);
    files_below(&home.audit(), &mut told);
    // The damaged bit is in the middle of the canary: what is around it is looked for.
    let token = token.into_bytes();
    for (what, bytes) in [("the key", &secret[..]), ("the token", &token), ("the weights", &weights[32..])] {
        for form in forms(bytes) {
            let hit = told.iter().position(|text| contains(text, &form));
            assert_eq!(hit, None, "{what} came out as {}", String::from_utf8_lossy(&form));
        }
    }
    for text in &told {
        let text = String::from_utf8_lossy(text);
        let addresses = text.match_indices("0x7").filter(|(at, _)| {
            text.get(at + 2..at + 14).is_some_and(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
        });
        assert_eq!(addresses.count(), 0, "{text}");
    }
}
