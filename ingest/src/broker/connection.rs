//! One client's connection: frames in, answers out, one after the other.
//!
//! What a client sends is bounded in size and time before it is decoded, and a panic over it closes this connection and
//! no other. A producer that does not wait for an answer (acks 0) gets none, as the protocol has it; if its records
//! could not be kept, the connection is closed, which is the only way to tell it.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use futures::FutureExt as _;
use rama::{Context, Service as _};
use tansu_broker::coordinator::group::administrator::Controller;
use tansu_broker::service;
use tansu_sans_io::{Body, ErrorCode, Frame, Header, ProduceResponse, SaslHandshakeResponse};
use tansu_service::FrameRouteService;
use tansu_storage::RequestChannelService;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::records::Records;
use super::{fetch, legacy, versions};
use crate::{Error, ErrorKind, Result};

/// The longest frame, as Kafka has it: `socket.request.max.bytes`.
const FRAME_BYTES_MAX: usize = 100 * 1024 * 1024;

/// How much room is made ahead of what has arrived.
const READ_BYTES: usize = 64 * 1024;

/// How long a connection may say nothing, as Kafka has it: `connections.max.idle.ms`.
const IDLE_MAX: Duration = Duration::from_secs(600);

/// How long a frame may take to arrive or to be taken.
const TRANSFER_MAX: Duration = Duration::from_secs(60);

/// What all connections share: where requests go.
#[derive(Debug)]
pub(super) struct Router {
    /// Requests that the libraries below answer, in the end through the guard.
    routes: FrameRouteService<(), tansu_broker::Error>,
    /// Reads go here without a detour.
    records: Arc<Records>,
}

/// What becomes of a request.
enum Answer {
    Send(Bytes),
    /// The client waits for no answer.
    Nothing,
    /// The client cannot be answered.
    Close(&'static str),
}

/// The part of a request that is the same in all versions.
#[derive(Debug, Clone, Copy)]
struct Head {
    api_key: i16,
    api_version: i16,
    correlation_id: i32,
}

impl Router {
    /// Sets up the routes to `storage`, which is the guard.
    pub(super) fn new(storage: RequestChannelService, records: Arc<Records>) -> Result<Self> {
        let routes = || -> Result<_, tansu_broker::Error> {
            let groups = Controller::with_storage(storage.clone())?;
            let builder = FrameRouteService::<(), tansu_broker::Error>::builder();
            let builder = service::storage::services(builder, storage.clone())?;
            let builder = service::coordinator::services(builder, groups)?;
            Ok(builder.build()?)
        };
        let routes = routes()
            .map_err(|source| Error::with_source(ErrorKind::Bug, "the broker's routes cannot be set up", source))?;
        Ok(Self { routes, records })
    }

    /// Serves one client until it goes, breaks the protocol, or the broker ends.
    pub(super) async fn serve(&self, mut stream: TcpStream, token: &CancellationToken) {
        let peer = stream.peer_addr().ok();
        loop {
            let frame = tokio::select! {
                frame = read_frame(&mut stream) => frame,
                () = token.cancelled() => return,
            };
            let frame = match frame {
                Ok(Some(frame)) => frame,
                Ok(None) => return,
                Err(error) => {
                    debug!(?peer, %error, "a client's connection ends");
                    return;
                }
            };
            let head = Head::of(&frame);
            let answer = AssertUnwindSafe(self.answer(frame, token)).catch_unwind().await;
            match answer {
                Ok(Answer::Send(bytes)) => match timeout(TRANSFER_MAX, stream.write_all(&bytes)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) | Err(_) => return,
                },
                Ok(Answer::Nothing) => {}
                Ok(Answer::Close(reason)) => {
                    warn!(?peer, request = ?head, reason, "a client's connection is closed");
                    return;
                }
                Err(_panic) => {
                    error!(?peer, request = ?head, "a request broke its connection, which is closed");
                    return;
                }
            }
        }
    }

    async fn answer(&self, encoded: Bytes, token: &CancellationToken) -> Answer {
        let Some(head) = Head::of(&encoded) else { return Answer::Close("the frame is too short for a request") };
        if !versions::supports(head.api_key, head.api_version) {
            return if head.api_key == versions::API_VERSIONS {
                // The client then starts over with a version that both know.
                let body = versions::response(ErrorCode::UnsupportedVersion.into());
                Head { api_version: 0, ..head }.encode(body.into())
            } else {
                Answer::Close("the broker does not know this request or this version of it")
            };
        }
        let frame = match self.decode(head, encoded) {
            Ok(frame) => frame,
            Err(answer) => return answer,
        };
        let acks = match &frame.body {
            Body::ProduceRequest(request) => Some(request.acks),
            _ => None,
        };
        let body = match frame.body {
            Body::ApiVersionsRequest(_) => versions::response(ErrorCode::None.into()).into(),
            Body::FetchRequest(request) => fetch::fetch(request, &self.records, token).await.into(),
            Body::ListOffsetsRequest(request) => fetch::list_offsets(request, &self.records).await.into(),
            Body::SaslHandshakeRequest(_) => SaslHandshakeResponse::default()
                .error_code(ErrorCode::UnsupportedSaslMechanism.into())
                .mechanisms(Some(Vec::new()))
                .into(),
            body => match self.routes.serve(Context::default(), Frame { body, ..frame }).await {
                Ok(frame) => frame.body,
                Err(error) => {
                    debug!(?head, %error, "no answer");
                    return Answer::Close("the request cannot be answered");
                }
            },
        };
        match (acks, &body) {
            (Some(0), Body::ProduceResponse(response)) if has_error(response) => {
                Answer::Close("records of a producer that does not wait could not be kept")
            }
            (Some(0), _) => Answer::Nothing,
            _ => head.encode(body),
        }
    }

    fn decode(&self, head: Head, encoded: Bytes) -> Result<Frame, Answer> {
        if head.api_key != versions::PRODUCE || head.api_version > legacy::PRODUCE_VERSION_MAX {
            return Frame::request_from_bytes(encoded).map_err(|error| {
                debug!(?head, %error, "not decoded");
                Answer::Close("the request cannot be decoded")
            });
        }
        let request = Head::body(encoded).and_then(legacy::produce_request);
        match request.ok_or(Answer::Close("the request cannot be decoded"))? {
            Ok(request) => Ok(Frame { size: 0, header: head.request(), body: request.into() }),
            Err(refusal) => Err(head.encode(refusal.into())),
        }
    }
}

impl Head {
    /// Bytes of the length in front of each frame.
    const SIZE_BYTES: usize = 4;

    /// The head of a frame that still has its length in front.
    fn of(encoded: &Bytes) -> Option<Self> {
        let mut rest = encoded.get(Self::SIZE_BYTES..)?;
        let api_key = rest.try_get_i16().ok()?;
        let api_version = rest.try_get_i16().ok()?;
        let correlation_id = rest.try_get_i32().ok()?;
        Some(Self { api_key, api_version, correlation_id })
    }

    /// What follows the head and the client's name in the older versions.
    fn body(mut encoded: Bytes) -> Option<Bytes> {
        let head_bytes = Self::SIZE_BYTES + 8;
        if encoded.len() < head_bytes {
            return None;
        }
        encoded.advance(head_bytes);
        let name_bytes = usize::try_from(encoded.try_get_i16().ok()?).unwrap_or(0);
        (name_bytes <= encoded.len()).then(|| encoded.split_off(name_bytes))
    }

    fn request(self) -> Header {
        Header::Request {
            api_key: self.api_key,
            api_version: self.api_version,
            correlation_id: self.correlation_id,
            client_id: None,
        }
    }

    fn encode(self, body: Body) -> Answer {
        let header = Header::Response { correlation_id: self.correlation_id };
        match Frame::response(header, body, self.api_key, self.api_version) {
            Ok(bytes) => Answer::Send(bytes),
            Err(error) => {
                debug!(head = ?self, %error, "not encoded");
                Answer::Close("the answer cannot be encoded")
            }
        }
    }
}

fn has_error(response: &ProduceResponse) -> bool {
    let topics = response.responses.iter().flatten();
    let mut partitions = topics.flat_map(|topic| topic.partition_responses.iter().flatten());
    partitions.any(|partition| partition.error_code != i16::from(ErrorCode::None))
}

/// The next frame with its length in front, or nothing if the client closed.
async fn read_frame(stream: &mut TcpStream) -> io::Result<Option<Bytes>> {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    match timeout(IDLE_MAX, read_upto(stream, &mut buffer, Head::SIZE_BYTES)).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof && buffer.is_empty() => return Ok(None),
        Ok(read) => read?,
        Err(_) => return Ok(None),
    }
    let length = i32::from_be_bytes(buffer[..Head::SIZE_BYTES].try_into().expect("four bytes were read"));
    let length = usize::try_from(length).ok().filter(|length| *length <= FRAME_BYTES_MAX).ok_or_else(|| {
        let message = format!("a frame of {length} bytes; the longest is {FRAME_BYTES_MAX}");
        io::Error::new(io::ErrorKind::InvalidData, message)
    })?;
    timeout(TRANSFER_MAX, read_upto(stream, &mut buffer, Head::SIZE_BYTES + length)).await??;
    Ok(Some(buffer.freeze()))
}

/// Reads until the buffer has so many bytes, and none more: the next frame stays in the socket.
async fn read_upto(stream: &mut TcpStream, buffer: &mut BytesMut, bytes: usize) -> io::Result<()> {
    while buffer.len() < bytes {
        let missing = bytes - buffer.len();
        // Room only for what may come soon, so that a length that is a lie costs nothing.
        buffer.reserve(missing.min(READ_BYTES));
        let read = (&mut *stream).take(missing as u64).read_buf(buffer).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}
