//! The program `lakebeat`: reads the command line and the settings once, puts the crates' parts together, and turns what
//! comes back into output and an exit status. Everything else lives in the crates.

mod cli;
mod commands;
mod output;
mod pipeline;
mod settings;
mod status;
mod stop;
mod topics;

use std::process::ExitCode;

use clap::Parser as _;
use tikv_jemallocator::Jemalloc;
use tracing_subscriber::EnvFilter;

use cli::Cli;
use output::Fault;
use settings::Settings;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// What a thread may use of it costs nothing until it is used. Plans are walked by recursion.
const THREAD_STACK_BYTES: usize = 16 << 20;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&error);
            ExitCode::from(Fault::status_of(&error))
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let settings = Settings::read(&cli)?;
    start_log(&settings.log_level)?;
    // Queries and commits share the threads; librdkafka has its own.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(THREAD_STACK_BYTES).build()?;
    let ended = runtime.block_on(commands::run(cli, settings));
    // A blocking call that hangs (a name that does not resolve) must not keep the program from ending.
    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
    ended
}

/// Log lines go to stderr, so that stdout holds nothing but results.
fn start_log(level: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(format!("{level},{}", QUIET.join(","))).map_err(|error| {
        Fault::usage(format!("log level \"{level}\" is none of error, warn, info, debug, trace: {error}"))
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(status::log_writer())
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .init();
    Ok(())
}

/// Libraries that tell at `info`, or complain at `error`, about what is everyday here.
const QUIET: [&str; 9] = [
    "buoyant_kernel=off",
    "delta_kernel=off",
    "deltalake_core=off",
    "librdkafka=off",
    "rdkafka=error",
    "tansu_broker=error",
    "tansu_storage=error",
    "tansu_service=error",
    "rama=error",
];
