//! The tunnel alone, as `netd wire` runs it: for this crate's tests and benchmarks.
use clap::Parser;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: weft_wire::Args,
}

fn main() -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    Ok(weft_wire::run(Command::parse().args)?)
}
