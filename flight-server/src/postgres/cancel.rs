//! Cancelling: what a cancel request, or a client that is gone, does to a running statement.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use pgwire::api::cancel::CancelHandler;
use pgwire::messages::cancel::CancelRequest;
use pgwire::messages::startup::SecretKey;
use tokio_util::sync::CancellationToken;

/// The running statement of one connection, as far as stopping it goes.
pub(super) struct CancelSignal {
    /// Cancelled when the client is gone; then every statement of the connection is.
    gone: CancellationToken,
    /// Cancelled by a request; renewed with each statement, so that a request that comes late hits nothing.
    current: Mutex<CancellationToken>,
}

impl CancelSignal {
    pub(super) fn new(gone: CancellationToken) -> Self {
        Self { current: Mutex::new(gone.child_token()), gone }
    }

    /// A statement begins.
    pub(super) fn renew(&self) {
        *self.lock() = self.gone.child_token();
    }

    /// Waits until the statement that runs now is cancelled.
    pub(super) async fn cancelled(&self) {
        let current = self.lock().clone();
        current.cancelled().await;
    }

    fn cancel(&self) {
        self.lock().cancel();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, CancellationToken> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connections of the door, by the number and the secret that each was given at its start.
#[derive(Default)]
pub(super) struct Cancels {
    connections: Mutex<HashMap<i32, (SecretKey, Arc<CancelSignal>)>>,
}

impl Cancels {
    /// Makes a connection known for as long as the guard lives.
    pub(super) fn register(self: &Arc<Self>, id: i32, secret: SecretKey, signal: Arc<CancelSignal>) -> CancelGuard {
        self.lock().insert(id, (secret, signal));
        CancelGuard { cancels: Arc::clone(self), id }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<i32, (SecretKey, Arc<CancelSignal>)>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl CancelHandler for Cancels {
    /// A wrong secret is passed over in silence, as the protocol wants: it tells a guesser nothing.
    async fn on_cancel_request(&self, request: CancelRequest) {
        let signal = match self.lock().get(&request.pid) {
            Some((secret, signal)) if secret.eq_value(&request.secret_key) => Arc::clone(signal),
            _ => return,
        };
        signal.cancel();
    }
}

/// Takes a connection out when it ends.
pub(super) struct CancelGuard {
    cancels: Arc<Cancels>,
    id: i32,
}

impl Drop for CancelGuard {
    fn drop(&mut self) {
        self.cancels.lock().remove(&self.id);
    }
}
