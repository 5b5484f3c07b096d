//! Runs the embedded broker alone: `broker PORT FOLDER`.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let port = arguments.next().and_then(|port| port.parse().ok()).expect("a port");
    let folder = arguments.next().expect("a folder");
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter("info,tansu_broker=off,tansu_storage=off,tansu_service=off,tansu_sans_io=off")
        .init();
    let options = ingest::broker::Options::new(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), folder);
    let token = CancellationToken::new();
    let (ready, _address) = oneshot::channel();
    let broker = ingest::broker::run(options, Arc::new(lakehouse::SystemClock), ready, token.clone());
    tokio::pin!(broker);
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).expect("a handler");
    let outcome = tokio::select! {
        outcome = &mut broker => outcome,
        _ = terminate.recv() => { token.cancel(); broker.await }
        _ = tokio::signal::ctrl_c() => { token.cancel(); broker.await }
    };
    if let Err(error) = outcome {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}
