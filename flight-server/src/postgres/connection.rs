//! One client's connection: the greeting, the message loop, and the watch for a client that is gone.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use pgwire::api::{ClientInfo, NoopHandler, PgWireConnectionState};
use pgwire::error::PgWireError;
use pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage};
use pgwire::tokio::server::{MaybeTls, PgWireMessageServerCodec, negotiate_tls, process_error, process_message};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Join, ReadHalf, SimplexStream, WriteHalf};
use tokio::net::TcpStream;
use tokio_util::codec::{Framed, FramedParts};
use tokio_util::sync::CancellationToken;

use super::Door;
use super::extended::Statement;
use super::handler::{Handler, error_info};
use crate::error::{Error, Kind};

/// From the first byte to the end of the greeting.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(60);
/// To tell a client that the server stops.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of rows that are gathered before they are sent.
const SEND_BYTES: usize = 64 * 1024;
/// Bytes that a client may send ahead of what is being worked on.
const RECEIVE_BYTES: usize = 64 * 1024;

/// Reading goes through a pipe that [`pump`] fills, writing straight to the socket.
type Wire = Join<ReadHalf<SimplexStream>, WriteHalf<MaybeTls>>;
type Socket = Framed<Wire, PgWireMessageServerCodec<Statement>>;

/// Serves one client until it goes, breaks the protocol, or the token is cancelled.
pub(super) async fn run(tcp: TcpStream, door: Arc<Door>, token: CancellationToken) {
    if let Err(error) = serve(tcp, door, token).await {
        // A client that goes without a word is no fault of anybody's.
        tracing::debug!(%error, "a postgresql connection ended");
    }
}

async fn serve(tcp: TcpStream, door: Arc<Door>, token: CancellationToken) -> io::Result<()> {
    let negotiated = tokio::select! {
        () = token.cancelled() => return Ok(()),
        negotiated = tokio::time::timeout(STARTUP_TIMEOUT, negotiate_tls(tcp, None)) => negotiated,
    };
    // Out of time, or TLS without asking first.
    let Ok(Some(negotiated)) = negotiated.map_err(io::Error::other).and_then(|inner| inner) else {
        return Ok(());
    };
    // Not a child of the server's token: a client whose server stops is told that, and not that somebody cancelled.
    let gone = CancellationToken::new();
    let (reader, pipe, mut socket) = split(negotiated);
    let handler = Arc::new(Handler::new(Arc::clone(&door), gone.clone()));
    let ended = {
        let mut pump = std::pin::pin!(pump(reader, pipe, gone));
        let mut messages = std::pin::pin!(messages(&mut socket, &handler, &door));
        let mut is_pumping = true;
        loop {
            tokio::select! {
                () = token.cancelled() => break None,
                () = &mut pump, if is_pumping => is_pumping = false,
                result = &mut messages => break Some(result),
            }
        }
    };
    match ended {
        Some(result) => result,
        None => farewell(&mut socket).await,
    }
}

/// Puts a pipe between the socket and the reader of messages, so that the end of the socket is seen while a statement
/// runs.
fn split(
    negotiated: Framed<MaybeTls, PgWireMessageServerCodec<Statement>>,
) -> (ReadHalf<MaybeTls>, WriteHalf<SimplexStream>, Socket) {
    let old = negotiated.into_parts();
    let (reader, writer) = tokio::io::split(old.io);
    let (pipe_reader, pipe_writer) = tokio::io::simplex(RECEIVE_BYTES);
    let mut parts = FramedParts::new::<PgWireBackendMessage>(tokio::io::join(pipe_reader, writer), old.codec);
    parts.read_buf = old.read_buf;
    parts.write_buf = old.write_buf;
    let mut socket = Framed::from_parts(parts);
    socket.set_backpressure_boundary(SEND_BYTES);
    (reader, pipe_writer, socket)
}

/// Moves what the client sends into the pipe. When there is nothing more to come, the client is gone, and with it the
/// reason for whatever runs on its behalf.
async fn pump(mut reader: ReadHalf<MaybeTls>, mut pipe: WriteHalf<SimplexStream>, gone: CancellationToken) {
    let mut buffer = vec![0; 8 * 1024];
    loop {
        match reader.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(length) => {
                if pipe.write_all(&buffer[..length]).await.is_err() {
                    break;
                }
            }
        }
    }
    gone.cancel();
    // The other half is still there to read the end.
    let _ = pipe.shutdown().await;
}

/// Reads and answers messages until the client says goodbye.
async fn messages(socket: &mut Socket, handler: &Arc<Handler>, door: &Arc<Door>) -> io::Result<()> {
    let startup = tokio::time::sleep(STARTUP_TIMEOUT);
    tokio::pin!(startup);
    let copy = Arc::new(NoopHandler);
    loop {
        let starting = matches!(
            socket.state(),
            PgWireConnectionState::AwaitingStartup | PgWireConnectionState::AuthenticationInProgress
        );
        let message = tokio::select! {
            () = &mut startup, if starting => return Ok(()),
            message = socket.next() => message,
        };
        let message = match message {
            None | Some(Ok(PgWireFrontendMessage::Terminate(_))) => return Ok(()),
            Some(Ok(message)) => message,
            Some(Err(error)) => {
                let error = Error::with_source(Kind::Protocol, format!("a message cannot be read: {error}"), error);
                return fail(socket, error).await;
            }
        };
        let is_extended = message.is_extended_query();
        let answered = process_message(
            message,
            socket,
            Arc::clone(handler),
            Arc::clone(handler),
            Arc::clone(handler),
            Arc::clone(&copy),
            Arc::clone(&door.cancels),
        )
        .await;
        match answered {
            Ok(()) => {}
            // The socket itself is broken.
            Err(PgWireError::IoError(error)) => return Err(error),
            Err(error) => {
                let is_fatal = matches!(&error, PgWireError::UserError(info) if info.is_fatal());
                process_error(socket, error, is_extended).await?;
                if is_fatal {
                    return Ok(());
                }
            }
        }
    }
}

async fn farewell(socket: &mut Socket) -> io::Result<()> {
    let error = Error::new(Kind::ShuttingDown, "the server is stopping; connect again later");
    // A client that does not read is not waited for.
    tokio::time::timeout(FAREWELL_TIMEOUT, fail(socket, error)).await.unwrap_or(Ok(()))
}

/// Tells the client why its connection ends.
async fn fail(socket: &mut Socket, error: Error) -> io::Result<()> {
    let info = error_info("FATAL", &error);
    socket.send(PgWireBackendMessage::ErrorResponse(info.into())).await?;
    socket.close().await
}
