//! Who gets an answer at the daemon's doors while others crowd them, and who is asked to say it properly.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use support::Home;
use support::daemon::{Daemon, WAIT, whole};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// The daemon, with a token that is needed for work.
fn with_token<'a>(home: &'a Home, more: &[&str]) -> Daemon<'a> {
    let file = home.file("token", TOKEN.as_bytes());
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let token = ["--token-file", file.to_str().unwrap()];
    Daemon::start(home, &[&token, more].concat())
}

#[test]
fn a_crowd_that_only_connects_does_not_cut_off_who_is_answered() {
    let home = Home::new();
    let daemon = Daemon::start(&home, &["--max-connections", "8", "--allow-drill"]);
    let (mut stream, mut seen) = daemon.events();
    let mut buffer = [0; 4096];
    let mut crowd: Vec<_> = (0..50).map(|_| TcpStream::connect(&daemon.address).unwrap()).collect();
    assert_eq!(daemon.get("/healthz").status, 200);
    // The first of them is gone, and not the stream, which is older.
    crowd[0].set_read_timeout(Some(WAIT)).unwrap();
    assert!(matches!(crowd[0].read(&mut buffer), Ok(0) | Err(_)));
    daemon.told(&["drill", "big-bin"]);
    while !seen.contains("SealVerificationFailed") {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "it was cut off: {seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
}

#[test]
fn by_a_foreign_name_nothing_is_answered_not_even_what_is_not_there() {
    let home = Home::new();
    let daemon = Daemon::start(&home, &[]);
    for request in [
        "GET /nowhere HTTP/1.1\r\nHost: evil.example",
        "PUT /v1/status HTTP/1.1\r\nHost: evil.example",
        "OPTIONS * HTTP/1.1\r\nHost: evil.example",
        "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443",
        "GET /v1/status HTTP/1.1\r\nHost: evil.example",
    ] {
        let request = format!("{request}\r\nConnection: close\r\n\r\n");
        let back = whole(TcpStream::connect(&daemon.address).unwrap(), &request);
        assert!(back.starts_with("HTTP/1.1 421") && back.contains(r#""kind":"host""#), "{request}: {back}");
    }
    assert_eq!((daemon.get("/nowhere").status, daemon.http("PUT", "/v1/status", "").status), (404, 405));
}

#[test]
fn a_host_with_an_impossible_port_and_two_tokens_are_refused() {
    let home = Home::new();
    let daemon = with_token(&home, &[]);
    for host in ["localhost:evil", "localhost:99999999", "127.0.0.1:+80", "[::1]:65536", "localhost:80:80"] {
        let answer = daemon.get_from(host, "/healthz");
        assert_eq!(answer.status, 400, "{host}: {answer:?}");
    }
    let path = "/v1/shards/big-bin/verify";
    let good = format!("Authorization: Bearer {TOKEN}\r\n");
    for more in ["Authorization: Bearer x\r\n", good.as_str()] {
        for headers in [format!("{good}{more}"), format!("{more}{good}")] {
            assert_eq!(daemon.http("POST", path, &headers).status, 401, "{headers}");
        }
    }
    assert_eq!(daemon.http("POST", path, &good).status, 200);
}

#[test]
fn a_body_that_never_ends_is_not_waited_for() {
    let home = Home::new();
    let daemon = with_token(&home, &[]);
    let head = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: \
             application/json\r\n"
        )
    };
    let begun = Instant::now();
    let ask = |mut stream: Box<dyn Talk>, request: String| {
        std::thread::spawn(move || {
            stream.write_all(request.as_bytes()).unwrap();
            let mut back = String::new();
            stream.read_to_string(&mut back).unwrap();
            back
        })
    };
    let port = || Box::new(TcpStream::connect(&daemon.address).unwrap());
    let asked = [
        ask(port(), format!("{}Content-Length: 100\r\n\r\n{{", head("/v1/attest"))),
        ask(port(), format!("{}Transfer-Encoding: chunked\r\n\r\n1\r\n{{\r\n", head("/v1/shards/big-bin/verify"))),
        ask(
            Box::new(UnixStream::connect(&daemon.socket).unwrap()),
            format!("{}Content-Length: 100\r\n\r\n{{", head("/v1/shards")),
        ),
    ];
    for back in asked.map(|asked| asked.join().unwrap()) {
        assert!(back.starts_with("HTTP/1.1 408") && back.contains(r#""kind":"timeout""#), "{back}");
    }
    assert!((Duration::from_secs(5)..Duration::from_secs(40)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    let large = "x".repeat(65 << 10);
    let request = format!("{}Connection: close\r\nContent-Length: {}\r\n\r\n{large}", head("/v1/attest"), large.len());
    let back = whole(TcpStream::connect(&daemon.address).unwrap(), &request);
    assert!(back.starts_with("HTTP/1.1 413") && back.contains("65536 bytes"), "{back}");
}

/// The descriptors that it may open, and what it said.
fn with_limit(home: &Home, limit: &str) -> (String, String) {
    let (mut shell, file) = (home.command_after(limit), home.file("m", &[7; 70_000]));
    let said = home.path("said");
    shell
        .args(["serve", "--json", "--format", "raw", "--listen", "127.0.0.1:0", "--socket"])
        .arg(home.path("s"))
        .arg(file);
    shell.stdout(Stdio::piped()).stderr(std::fs::File::create(&said).unwrap());
    let mut child = shell.env_remove("NOTIFY_SOCKET").spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id()));
    child.kill().unwrap();
    child.wait().unwrap();
    let said = std::fs::read_to_string(said).unwrap();
    assert!(!ready.is_empty(), "{said}");
    let limits = limits.unwrap();
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    (limit.split_whitespace().next().unwrap().to_owned(), said)
}

#[test]
fn it_may_open_what_all_connections_need_or_says_that_it_may_not() {
    let home = Home::new();
    // 512 clients with two each, 64 connections with three, a shard, and the reserve.
    let (limit, said) = with_limit(&home, "ulimit -Sn 200");
    assert_eq!((limit.as_str(), said.contains("descriptors")), ("1473", false), "{said}");
    let (limit, said) = with_limit(&home, "ulimit -n 300; ulimit -Sn 200");
    assert_eq!(limit, "300", "{said}");
    let warnings: Vec<_> = said.lines().filter(|line| line.contains("descriptors")).collect();
    assert!(matches!(warnings[..], [one] if one.contains("1473") && one.contains("LimitNOFILE")), "{said}");
}

trait Talk: Read + Write + Send {}

impl<T: Read + Write + Send> Talk for T {}
