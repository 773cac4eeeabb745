//! `netd dns` alone, for the tests.
use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: weft_dns::Args,
}

fn main() -> anyhow::Result<()> {
    weft_dns::run(Cli::parse().args)
}
