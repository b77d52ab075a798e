//! Prometheus for real: its own tools judge the rules, the dashboard and what the daemon exports; and it watches a running
//! daemon in which a bit breaks, until the alert fires.

use crate::Args;
use crate::daemon::{Daemon, get};
use crate::debian;
use crate::shell::{Ctx, run, run_with_input, say};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const RULES: &str = "deploy/prometheus/vram.rules.yml";
const ALERT: &str = "VramIntegrityFailure";
/// How long Prometheus gets to start, scrape and fire: a second would do on an idle machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// `cargo xtask alerts`.
pub fn step(ctx: &Ctx, args: &mut Args) -> Result<String> {
    args.finish()?;
    let promtool = debian::program(ctx, "prometheus", "usr/bin/promtool")?;
    run(ctx.command(&promtool).args(["check", "rules", RULES]))?;
    run(ctx.command(&promtool).args(["test", "rules", "deploy/prometheus/vram.rules.test.yml"]))?;
    run(ctx.command(&promtool).args(["check", "config", "deploy/prometheus/prometheus.yml"]))?;

    let [key, config] = signed(ctx)?;
    let mut daemon = Daemon::start(
        ctx,
        "alerts",
        &[4, 2],
        &["--on-failure", "repair", "--period", "2s", "--audit-key", &key, "--config", &config],
    )?;
    // The first pass makes every series that there is.
    std::thread::sleep(Duration::from_secs(3));
    let page = daemon.get("/metrics")?;
    run_with_input(ctx.command(&promtool).args(["check", "metrics"]), &page)?;
    let exported = Exported::of(&page);
    let mut checked = 0;
    for file in [RULES, "deploy/grafana/vram.json"] {
        let text = std::fs::read_to_string(ctx.root.join(file)).with_context(|| file.to_owned())?;
        checked += exported.covers(file, &text)?;
    }
    let fired = watch(ctx, &daemon)?;
    daemon.stop()?;
    Ok(format!(
        "rules and {checked} mentions of metrics checked; {ALERT} fired {:.1} s after the bit broke",
        fired.as_secs_f64()
    ))
}

/// A key for the log, and a configuration with a replica, and with a witness that nobody is.
fn signed(ctx: &Ctx) -> Result<[String; 2]> {
    run(ctx.cargo().args(["build", "--release", "-p", "vram"]))?;
    let home = ctx.target.join("tmp/alerts-evidence");
    let _ = std::fs::remove_dir_all(&home);
    std::fs::create_dir_all(home.join("replica"))?;
    let (key, config) = (home.join("audit.key"), home.join("vram.toml"));
    run(ctx.command(ctx.target.join("release/vram")).args(["audit", "keygen", "--audit-key"]).arg(&key))?;
    let replica = home.join("replica");
    let vkey = "witness.example.org/w1+af7ac9cb+BBCHTjVvcmoerhePTbYXxQrjjKM5y+ZWcYXcGCUdRdUM";
    let address = free_address()?;
    let text = format!(
        "[[audit.replicas]]\nurl = \"file://{}\"\n[[audit.witnesses]]\nurl = \"http://{address}\"\nvkey = \"{vkey}\"\n",
        replica.display()
    );
    std::fs::write(&config, text)?;
    Ok([key.display().to_string(), config.display().to_string()])
}

/// What the daemon exports.
struct Exported {
    names: BTreeSet<String>,
    labels: BTreeSet<String>,
}

impl Exported {
    fn of(page: &str) -> Self {
        let (mut names, mut labels) = (BTreeSet::new(), BTreeSet::new());
        for line in page.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let end = line.find(['{', ' ']).unwrap_or(line.len());
            names.insert(line[..end].to_owned());
            if let Some((inside, _)) = line.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')) {
                labels.extend(inside.split("\",").filter_map(|pair| Some(pair.split_once('=')?.0.trim().to_owned())));
            }
        }
        // What Prometheus itself adds.
        labels.extend(["instance", "job"].map(str::to_owned));
        // The recording rules' names.
        names.extend(["vram_audit_emit_failures", "vram_audit_critical_emit_failures"].map(str::to_owned));
        Self { names, labels }
    }

    /// Whether every metric of ours that a text mentions, and every label by which it chooses, is exported. Says how many
    /// mentions there are.
    fn covers(&self, file: &str, text: &str) -> Result<usize> {
        let mut mentions = 0;
        for (at, _) in text.match_indices("vram_") {
            if text[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_') {
                continue;
            }
            // In JSON the quotes of a selector are escaped; they do not matter here.
            let rest = &text[at..];
            let end = rest.find(|character: char| !character.is_ascii_alphanumeric() && character != '_');
            let (name, behind) = rest.split_at(end.unwrap_or(rest.len()));
            ensure!(self.names.contains(name), "{file} asks for {name}, which vram serve does not export");
            mentions += 1;
            let Some(selector) = behind.strip_prefix('{').and_then(|behind| behind.split_once('}')) else { continue };
            for label in selector.0.split(',').filter_map(|pair| pair.split(['=', '!']).next()) {
                let label = label.trim();
                ensure!(
                    label.is_empty() || self.labels.contains(label),
                    "{file} chooses {name} by {label}, a label that it has not"
                );
            }
        }
        ensure!(mentions > 0, "{file} mentions no metric of ours");
        Ok(mentions)
    }
}

/// A program that ends with this.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts Prometheus on the daemon, breaks a bit, and waits for the alert. Returns how long that took.
fn watch(ctx: &Ctx, daemon: &Daemon) -> Result<Duration> {
    let prometheus = debian::program(ctx, "prometheus", "usr/bin/prometheus")?;
    let home = daemon.home.join("prometheus");
    std::fs::create_dir_all(&home)?;
    let rules = ctx.root.join(RULES);
    let config = home.join("prometheus.yml");
    std::fs::write(
        &config,
        format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [\"{}\"]\nscrape_configs:\n  - job_name: vram\n    \
             static_configs:\n      - targets: [\"{}\"]\n",
            rules.display(),
            daemon.address
        ),
    )?;
    let address = free_address()?;
    let mut command = Command::new(&prometheus);
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.tsdb.path={}", home.join("data").display()));
    command.arg(format!("--web.listen-address={address}")).arg("--log.level=warn");
    say(&format!("$ {}", crate::shell::shown(&command)));
    let _ending = Ending(command.stdin(Stdio::null()).spawn().context("prometheus could not be started")?);

    let up = || alone(&address, "up");
    until("Prometheus scrapes the daemon", || Ok(up()? == Some(1.0)))?;
    ensure!(firing(&address)?.is_empty(), "an alert fires before anything is broken: {:?}", firing(&address)?);
    let shard = daemon.shards.first().context("no shard")?.0.clone();
    daemon.ask(&["drill", &shard])?;
    let broken = Instant::now();
    until("the alert fires", || Ok(firing(&address)?.contains(ALERT)))?;
    Ok(broken.elapsed())
}

fn free_address() -> Result<String> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

fn until(what: &str, holds: impl Fn() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    loop {
        // It may not answer yet.
        match holds() {
            Ok(true) => return Ok(()),
            Err(error) if begun.elapsed() > PATIENCE => return Err(error),
            _ if begun.elapsed() > PATIENCE => bail!("waited {} s, and not: {what}", PATIENCE.as_secs()),
            _ => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// The value of an expression with one series.
fn alone(address: &str, expression: &str) -> Result<Option<f64>> {
    let answer: Value = serde_json::from_str(&get(address, &format!("/api/v1/query?query={expression}"))?)?;
    Ok(answer["data"]["result"][0]["value"][1].as_str().and_then(|value| value.parse().ok()))
}

/// The alerts that fire.
fn firing(address: &str) -> Result<BTreeSet<String>> {
    let answer: Value = serde_json::from_str(&get(address, "/api/v1/alerts")?)?;
    let alerts = answer["data"]["alerts"].as_array().context("no alerts")?;
    let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
    Ok(firing.filter_map(|alert| alert["labels"]["alertname"].as_str().map(str::to_owned)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_or_label_that_nobody_exports_is_found() {
        let page = "# TYPE vram_a counter\nvram_a_total 1\n\nvram_s{shard=\"x,y\",state=\"verified\"} 1\n";
        let exported = Exported::of(page);
        assert_eq!(exported.covers("f", "rate(vram_a_total[5m]) and vram_s{state=\"a\",shard!=\"b\"}").unwrap(), 2);
        assert!(exported.covers("f", "vram_b > 0").is_err());
        assert!(exported.covers("f", "vram_s{statt=\"a\"}").is_err());
        assert!(exported.covers("f", "up == 0").is_err(), "nothing was checked");
    }
}
