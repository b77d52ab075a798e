//! Long runs that are kept out of CI: the same tests with more rounds.

use crate::shell::{Ctx, Usage};
use crate::steps::Count;
use crate::{Args, fuzz};
use anyhow::{Result, bail};

/// One campaign: a row here is all that a new one needs.
pub struct Campaign {
    pub name: &'static str,
    pub help: &'static str,
    does: Does,
}

enum Does {
    /// `cargo ARGUMENTS` with these variables.
    Tests { args: &'static [&'static str], env: &'static [(&'static str, &'static str)] },
    /// Every fuzz target for so many seconds.
    Fuzz(u64),
}

pub const CAMPAIGNS: &[Campaign] = &[
    Campaign {
        name: "kill",
        help: "kill -9 of the log's writer, 20,000 times",
        does: Does::Tests {
            args: &["test", "-p", "audit-logging", "kill", "--", "--nocapture"],
            env: &[("AUDIT_LOGGING_KILLS", "20000")],
        },
    },
    Campaign {
        name: "cuda",
        help: "every bit of 64 KiB on an emulated GPU; every driver call of a shard's life and of a sweep failing",
        does: Does::Tests {
            args: &[
                "test",
                "-p",
                "vram-residency",
                "--test",
                "cuda_device",
                "--test",
                "cuda_faults",
                "--test",
                "cuda_fingerprint",
                "--test",
                "cuda_sweep",
                "--",
                "--ignored",
                "--nocapture",
            ],
            env: &[],
        },
    },
    Campaign { name: "fuzz", help: "30 minutes of each fuzz target", does: Does::Fuzz(30 * 60) },
];

pub fn run_campaign(ctx: &Ctx, campaign: &Campaign) -> Result<()> {
    match campaign.does {
        Does::Fuzz(seconds) => fuzz::campaign(ctx, Some(seconds), None).map(|_| ()),
        Does::Tests { args, env } => {
            let mut count = Count::default();
            count.run(ctx.cargo().args(args).envs(env.iter().copied()))?;
            if count.passed == 0 {
                bail!("no test was executed: the filter in the table of campaigns matches nothing");
            }
            Ok(())
        }
    }
}

pub fn run(ctx: &Ctx, mut args: Args) -> Result<()> {
    let name = if args.own.is_empty() { String::new() } else { args.own.remove(0) };
    args.finish()?;
    match CAMPAIGNS.iter().find(|campaign| campaign.name == name) {
        Some(campaign) => run_campaign(ctx, campaign),
        None => {
            let names: Vec<&str> = CAMPAIGNS.iter().map(|campaign| campaign.name).collect();
            Err(Usage::err(format!("which campaign? There are {}", names.join(", "))))
        }
    }
}
