//! The end: Ctrl-C or SIGTERM cancels a token, and everything that holds it drains.

use tokio_util::sync::CancellationToken;

/// A token that Ctrl-C and SIGTERM cancel. A second Ctrl-C ends the program at once: the ledger makes that safe.
pub(crate) fn on_signal() -> anyhow::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let token = CancellationToken::new();
    let cancel = token.clone();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let listen = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        cancel.cancel();
        interrupt.recv().await;
        std::process::exit(130);
    };
    #[expect(clippy::disallowed_methods, reason = "lives as long as the program and has nothing to give back")]
    tokio::spawn(listen);
    Ok(token)
}
